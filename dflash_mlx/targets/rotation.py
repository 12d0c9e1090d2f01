"""The rotary embedding of one pass, its sines and cosines computed once for all layers.

Every layer rotates queries and keys at the same positions. On a GPU each rotation is one kernel of
MLX. Elsewhere MLX puts it together from some twenty operations, a third of which compute sines and
cosines that another call has computed already. A layer's twin takes them from here; what is done
with them, and so every bit of the result, is the same.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..batched import Starts
from ..kv import Scalar
from .twin import twin


class Rotation:
    """Rotates rows of one pass.

    Args:
        start: position of the pass's first row; of several texts a list.
    """

    def __init__(self, start: Starts) -> None:
        # Beside heads and rows.
        self._start = mx.array(start)[:, None, None] if isinstance(start, list) else start
        self._waves: dict[tuple[Any, ...], tuple[mx.array, mx.array]] = {}

    def shared(self, layer: Any) -> Any:
        """A twin of an mlx-lm layer that rotates by this, or the layer where that saves nothing."""
        if mx.default_device().type == mx.gpu or "self_attn" not in layer:
            return layer
        attention = layer.self_attn
        if "rope" not in attention or not _known(attention.rope):
            return layer
        return twin(layer, self_attn=twin(attention, rope=_Shared(self, attention.rope)))

    def rotate(self, x: mx.array, rope: nn.RoPE) -> mx.array:
        """What `rope` makes of [B, heads, L, head_dim] at the pass's positions."""
        key = (rope.dims, rope.base, rope.scale, x.shape[2], x.dtype)
        if key not in self._waves:
            self._waves[key] = self._compute(x, rope)
        return _turn(x, rope.dims, *self._waves[key])

    def _compute(self, x: mx.array, rope: nn.RoPE) -> tuple[mx.array, mx.array]:
        half = rope.dims // 2
        step = mx.array(math.log(rope.base) / half, mx.float32)
        turns = mx.exp(mx.arange(0, -half, -1, dtype=mx.float32) * step)
        positions = (mx.arange(x.shape[2], dtype=mx.float32) + self._start) * rope.scale
        angles = positions[..., None] * turns
        return mx.cos(angles).astype(x.dtype), mx.sin(angles).astype(x.dtype)


class _Shared:
    """Stands for a rotary embedding within one pass."""

    def __init__(self, rotation: Rotation, rope: nn.RoPE) -> None:
        self._rotation = rotation
        self._rope = rope

    def __call__(self, x: mx.array, offset: Scalar) -> mx.array:
        return self._rotation.rotate(x, self._rope)


def _known(rope: Any) -> bool:
    # By type: what derives from it or stands beside it has frequencies of its own.
    return type(rope) is nn.RoPE and not rope.traditional


def _turn(x: mx.array, dims: int, cosines: mx.array, sines: mx.array) -> mx.array:
    half = dims // 2
    first, second = x[..., :half], x[..., half:dims]
    turned = [first * cosines - second * sines, first * sines + second * cosines]
    rest = [x[..., dims:]] if dims < x.shape[-1] else []
    return mx.concatenate(turned + rest, axis=-1)
