"""Rotary positions of the draft: plain, YaRN and Llama 3.1."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from ..batched import Starts
from ..kv import Scalar
from ..rope import Rope
from ..waves import Waves, saves

Rotate = Callable[[mx.array, Scalar], mx.array]  # rows, and the position of the first


class Rotary:
    """Rotates the two halves of each head against each other (the "neox" layout).

    YaRN (arXiv 2309.00071, section 3.2) and Llama 3.1 divide the slow frequencies by `factor`,
    keep the fast ones and blend those in between. Frequencies are computed in double precision:
    an error in one is multiplied by the position.
    """

    def __init__(self, rope: Rope, dims: int) -> None:
        self.dims = dims
        self.scale = rope.attention_factor if rope.kind == "yarn" else 1.0
        self.periods = mx.array(_periods(rope, dims), mx.float32)

    def at(self, start: Starts) -> Rotate:
        """The same for the layers of one pass, whose first row is at position `start`."""
        if not saves():
            return self
        waves = Waves(start)

        def rotate(x: mx.array, _: Scalar) -> mx.array:
            x = x if self.scale == 1.0 else x * self.scale
            return waves.turn(x, self.dims, lambda: mx.reciprocal(self.periods))

        return rotate

    def __call__(self, x: mx.array, start: Scalar) -> mx.array:
        """Rotate [B, heads, L, head_dim], the first row at position `start`."""
        if self.scale != 1.0:
            x = x * self.scale
        return mx.fast.rope(
            x,
            self.dims,
            traditional=False,
            base=None,
            scale=1.0,
            offset=start,
            freqs=self.periods,
        )


def _periods(rope: Rope, dims: int) -> list[float]:
    """Of each pair of dimensions, positions per radian."""
    plain = [rope.theta ** (2 * pair / dims) for pair in range(dims // 2)]
    if rope.kind == "default":
        return plain
    slow = _slow_llama3(rope, plain) if rope.kind == "llama3" else _slow_yarn(rope, dims)
    blend = zip(plain, slow, strict=True)
    return [period / (share / rope.factor + 1 - share) for period, share in blend]


def _slow_llama3(rope: Rope, periods: list[float]) -> list[float]:
    """Per pair from 0 (fast, keeps its frequency) to 1 (slow), by turns in the original length."""
    low, high = rope.low_freq_factor, rope.high_freq_factor
    turns = [rope.original_max_position / (2 * math.pi * period) for period in periods]
    return [_share(high, low, t) for t in turns]


def _slow_yarn(rope: Rope, dims: int) -> list[float]:
    """Per pair from 0 (fast) to 1 (slow), by its number."""

    def pair_of(rotations: float) -> float:
        turns = rope.original_max_position / (rotations * 2 * math.pi)
        return dims * math.log(turns) / (2 * math.log(rope.theta))

    first, last = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dims - 1)
    return [_share(first, last, pair) for pair in range(dims // 2)]


def _share(zero: float, one: float, x: float) -> float:
    """0 at `zero`, 1 at `one`, linear between, cut off beyond."""
    return min(max((x - zero) / (one - zero or 0.001), 0.0), 1.0)
