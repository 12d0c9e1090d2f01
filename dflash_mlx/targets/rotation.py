"""Twins of mlx-lm's layers that share the sines and cosines of one pass, see `waves`."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..batched import Starts
from ..kv import Scalar
from ..waves import Waves, saves
from .twin import twin


class Rotation:
    """Rotates rows of one pass.

    Args:
        start: as of `Waves`.
    """

    def __init__(self, start: Starts) -> None:
        self.waves = Waves(start)

    def shared(self, layer: Any) -> Any:
        """A twin of an mlx-lm layer that rotates by this, or the layer where that saves nothing."""
        if not saves() or "self_attn" not in layer:
            return layer
        attention = layer.self_attn
        if "rope" not in attention or not _known(attention.rope):
            return layer
        return twin(layer, self_attn=twin(attention, rope=_Shared(self.waves, attention.rope)))


class _Shared:
    """Stands for a rotary embedding within one pass."""

    def __init__(self, waves: Waves, rope: nn.RoPE) -> None:
        self._waves = waves
        self._rope = rope

    def __call__(self, x: mx.array, offset: Scalar) -> mx.array:
        its = self._rope
        return self._waves.turn(x, (its.dims, its.base, its.scale), self._turns, its.scale)

    def _turns(self) -> mx.array:
        half = self._rope.dims // 2
        step = mx.array(math.log(self._rope.base) / half, mx.float32)
        return mx.exp(mx.arange(0, -half, -1, dtype=mx.float32) * step)


def _known(rope: Any) -> bool:
    # By type: what derives from it or stands beside it has frequencies of its own.
    return type(rope) is nn.RoPE and not rope.traditional
