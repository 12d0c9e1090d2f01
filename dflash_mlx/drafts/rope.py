"""Rotary positions of the draft, plain and YaRN."""

from __future__ import annotations

import math

import mlx.core as mx

from ..config import Rope
from ..kv import Scalar


class Rotary:
    """Rotates the two halves of each head against each other (the "neox" layout).

    YaRN (arXiv 2309.00071, section 3.2) divides the slow frequencies by `factor`, keeps the fast
    ones and blends those between the two cut-offs.
    """

    def __init__(self, rope: Rope, dims: int) -> None:
        self.dims = dims
        self.theta = rope.theta
        self.scale = rope.attention_factor if rope.kind == "yarn" else 1.0
        self.periods = _yarn_periods(rope, dims) if rope.kind == "yarn" else None

    def __call__(self, x: mx.array, start: Scalar) -> mx.array:
        """Rotate [B, heads, L, head_dim], the first row at position `start`."""
        if self.scale != 1.0:
            x = x * self.scale
        return mx.fast.rope(
            x,
            self.dims,
            traditional=False,
            base=self.theta if self.periods is None else None,
            scale=1.0,
            offset=start,
            freqs=self.periods,
        )


def _yarn_periods(rope: Rope, dims: int) -> mx.array:
    exponent = mx.arange(0, dims, 2) / dims
    period = mx.power(rope.theta, exponent)

    def dim_of(rotations: float) -> float:
        turns = rope.original_max_position / (rotations * 2 * math.pi)
        return dims * math.log(turns) / (2 * math.log(rope.theta))

    low = max(math.floor(dim_of(rope.beta_fast)), 0)
    high = min(math.ceil(dim_of(rope.beta_slow)), dims - 1)
    span = max(high - low, 0.001)
    slow = mx.clip((mx.arange(dims // 2) - low) / span, 0, 1)
    frequency = slow / (period * rope.factor) + (1 - slow) / period
    return 1 / frequency
