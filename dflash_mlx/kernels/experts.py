"""A mixture of experts in which each expert's weights are read once for all rows that chose it."""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx

from . import rules
from .choice import Example, Kernels, Op
from .gather_quantized_matmul_small import (
    gather_quantized_matmul_small_metal,
    gather_quantized_matmul_small_reference,
)
from .quantized_matmul_small import DTYPES, MAX_ROWS, THREADS, PackedWeight, tile_rows

GATHERED = Op(
    "gather_quantized_matmul_small",
    gather_quantized_matmul_small_reference,
    gather_quantized_matmul_small_metal,
    THREADS,
    rules.experts,
)
FEW = 4  # experts in an example


class FewRowsExperts:
    """Stands for a layer of SwiGLU experts.

    Args:
        module: called with rows and choices, serves for many rows.
        gate, up, down: of all experts, [E, N, K] packed.
        kernels: what to run by.
    """

    def __init__(
        self,
        module: Any,
        gate: PackedWeight,
        up: PackedWeight,
        down: PackedWeight,
        kernels: Kernels,
    ) -> None:
        self._module = module
        self._gate, self._up, self._down = gate, up, down
        self._kernels = kernels

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Rows [..., K] and each one's choices [..., S] to [..., S, N]."""
        rows = x.size // x.shape[-1]
        inner = self._pick(rows, x.dtype, self._gate, self._up)
        outer = self._pick(rows, x.dtype, self._down, None)
        if inner is None or outer is None:
            y: mx.array = self._module(x, indices)
            return y
        chosen = indices.reshape(rows, -1).astype(mx.uint32)
        hidden = inner(x.reshape(rows, -1), self._gate, chosen, self._up)
        y = outer(hidden, self._down, chosen)
        return y.reshape(*indices.shape, -1)

    def _pick(
        self, rows: int, dtype: mx.Dtype, weight: PackedWeight, up: PackedWeight | None
    ) -> Any:
        if not 1 <= rows <= MAX_ROWS or dtype not in DTYPES:
            return None
        tile = tile_rows(weight.shape[0], None, up is not None)
        kind = (dtype, weight.scales.dtype, *weight[3:], up is not None, rows <= 8, tile)
        return self._kernels.pick(
            GATHERED, kind, partial(example, rows, dtype, weight, up, tile), rows=rows
        )


def example(
    rows: int, dtype: mx.Dtype, weight: PackedWeight, up: PackedWeight | None, tile: int
) -> Example:
    """Some rows and the first of the experts, each chosen by several."""
    first = [w.first(FEW) for w in (weight, up) if w]
    x = mx.random.normal((rows, weight.shape[1]), key=mx.random.key(0)).astype(dtype)
    count = min(FEW, weight.w.shape[0])
    indices = (mx.arange(2 * rows) // 2 + mx.arange(2 * rows) % 2) % count
    chosen = indices.reshape(rows, 2).astype(mx.uint32)
    geometry = {"rows": tile if up is None else 2 * tile}
    return Example((x, first[0], chosen, *first[1:]), geometry=geometry)
