"""Rotary embedding of one pass, its sines and cosines computed once for all layers.

Every layer rotates queries and keys at the same positions. On a GPU each rotation is one kernel of
MLX. Elsewhere MLX puts it together from some twenty operations, a third of which compute sines and
cosines that another call has computed already. Here they are kept; what is done with them, and so
every bit of the result, is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import mlx.core as mx

from .batched import Starts


class Waves:
    """Rotates rows of one pass, halves of each head against each other.

    Args:
        start: position of the pass's first row; of several texts a list.
    """

    def __init__(self, start: Starts) -> None:
        # Beside heads and rows.
        self._start = mx.array(start)[:, None, None] if isinstance(start, list) else start
        self._made: dict[Hashable, tuple[mx.array, mx.array]] = {}

    def __len__(self) -> int:
        return len(self._made)

    def turn(
        self, x: mx.array, kind: Hashable, turns: Callable[[], mx.array], scale: float = 1.0
    ) -> mx.array:
        """Rotate the first dimensions of [B, heads, L, head_dim].

        Args:
            kind: names the frequencies.
            turns: radians per position of each pair of dimensions, float32 [dims / 2].
            scale: of the positions.
        """
        key = (kind, x.shape[2], x.dtype)
        if key not in self._made:
            positions = (mx.arange(x.shape[2], dtype=mx.float32) + self._start) * scale
            angles = positions[..., None] * turns()
            self._made[key] = mx.cos(angles).astype(x.dtype), mx.sin(angles).astype(x.dtype)
        return _turned(x, *self._made[key])


def saves() -> bool:
    """Whether MLX has no kernel for a rotation here."""
    return bool(mx.default_device().type != mx.gpu)


def _turned(x: mx.array, cosines: mx.array, sines: mx.array) -> mx.array:
    half = cosines.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = [first * cosines - second * sines, first * sines + second * cosines]
    rest = [x[..., 2 * half :]] if 2 * half < x.shape[-1] else []
    return mx.concatenate(turned + rest, axis=-1)
