"""Keys and values in 8 or 4 bits.

A row is quantised when it is written, by itself and in groups along the head, as mlx-lm's
`QuantizedKVCache` does; so rolling back, sliding and growing are those of `kv.py`, on six arrays a
layer instead of two: packed values, scales and biases, of keys and of values. mlx-lm's own
attention multiplies with the packed arrays wherever a cache says how many `bits` it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .errors import UsageError
from .kv import LayerView, Scalar

BITS, GROUPS = (4, 8), (32, 64, 128)  # what MLX can
Packed = tuple[mx.array, mx.array, mx.array]  # values, scales, biases


@dataclass(frozen=True)
class KVBits:
    """How the keys and values of a target are kept.

    Attributes:
        bits: 4 or 8.
        group: elements that share a scale and a bias; has to divide the size of a head.

    Raises:
        UsageError: MLX has no such quantisation.
    """

    bits: int
    group: int = 64

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UsageError(f"kv bits is {self.bits}, expected 8 or 4")
        if self.group not in GROUPS:
            raise UsageError(f"kv group size is {self.group}, expected 32, 64 or 128")

    def view(self, rows: list[mx.array] | None, base: Scalar, start: Scalar) -> QuantisedView:
        """One layer's cache during one pass."""
        return QuantisedView(rows, base, start, self)

    def pack(self, rows: mx.array) -> list[mx.array]:
        """[..., head_dim] to values, scales and biases."""
        return list(mx.quantize(rows, group_size=self.group, bits=self.bits))


class QuantisedView(LayerView):
    """As `LayerView`; what comes back are packed keys and values.

    Attributes:
        bits, group_size: what mlx-lm's attention asks of a cache.
    """

    def __init__(
        self, rows: list[mx.array] | None, base: Scalar, start: Scalar, kept: KVBits
    ) -> None:
        super().__init__(rows, base, start)
        self._kept = kept
        self.bits, self.group_size = kept.bits, kept.group

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Write [1, kv_heads, L, head_dim] at `offset`; two `Packed` that queries may attend to."""
        rows = self.store([*self._kept.pack(keys), *self._kept.pack(values)])
        seen = self.seen(rows, keys.shape[2])
        return tuple(seen[:3]), tuple(seen[3:])
