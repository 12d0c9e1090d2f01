"""Linear layers that take few rows through a kernel, and many through MLX."""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from . import rules
from .choice import Example, Kernels, Op, Run
from .matmul_small import MAX_ROWS, matmul_small_metal, matmul_small_reference
from .matmul_small import THREADS as DENSE_THREADS
from .matmul_small import tile_rows as dense_tile_rows
from .quantized_matmul_rows import MAX_ROWS as SCALAR_ROWS
from .quantized_matmul_rows import THREADS as SCALAR_THREADS
from .quantized_matmul_rows import quantized_matmul_rows_metal, rows_each
from .quantized_matmul_small import (
    BITS,
    DTYPES,
    GROUP_SIZES,
    THREADS,
    PackedWeight,
    quantized_matmul_small_metal,
    quantized_matmul_small_reference,
    tile_rows,
)

EXAMPLE_ROWS = 64  # of a weight

QUANTISED = Op(
    "quantized_matmul_small",
    quantized_matmul_small_reference,
    quantized_matmul_small_metal,
    THREADS,
    rules.quantised,
)
SCALAR = Op(
    "quantized_matmul_rows",
    quantized_matmul_small_reference,
    quantized_matmul_rows_metal,
    SCALAR_THREADS,
    rules.quantised_scalar,
)
DENSE = Op("matmul_small", matmul_small_reference, matmul_small_metal, DENSE_THREADS, rules.dense)
Weight = PackedWeight | mx.array


def stored(module: nn.Module) -> Weight | None:
    """The weight of a linear layer or embedding as the kernels take it; None if they do not."""
    weight: mx.array = module["weight"]
    if "scales" not in module:
        return weight if weight.dtype in DTYPES else None
    if module.mode != "affine" or module.bits not in BITS or module.group_size not in GROUP_SIZES:
        return None
    return PackedWeight(weight, module["scales"], module["biases"], module.group_size, module.bits)


class FewRows:
    """Stands for a linear layer, or for an embedding as the head.

    Args:
        module: holds the weight.
        weight: what `stored` made of it.
        kernels: what to run by.
        many: what to call for many rows, and where no kernel pays; by default the module.
    """

    def __init__(
        self, module: nn.Module, weight: Weight, kernels: Kernels, many: Run | None = None
    ) -> None:
        self._many = many or module
        self._weight = weight
        self._bias: mx.array | None = module.get("bias")
        self._kernels = kernels

    def __call__(self, x: mx.array) -> mx.array:
        """[..., K] to [..., N]."""
        rows = x.size // x.shape[-1]
        run = product(self._kernels, rows, x.dtype, self._weight)
        if run is None:
            y: mx.array = self._many(x)
            return y
        y = run(x.reshape(rows, -1), self._weight).reshape(*x.shape[:-1], -1)
        return y if self._bias is None else y + self._bias


class FewRowsSwiGLU:
    """Stands for a SwiGLU layer: gate, up and their product in one launch.

    Args:
        module: has `gate_proj`, `up_proj` and `down_proj`, and serves for many rows.
        gate, up: what `stored` made of the first two.
        kernels: what to run by.
    """

    def __init__(self, module: Any, gate: PackedWeight, up: PackedWeight, kernels: Kernels) -> None:
        self._module = module
        self._gate, self._up = gate, up
        self._kernels = kernels

    def __call__(self, x: mx.array) -> mx.array:
        """[..., K] to [..., N]."""
        rows = x.size // x.shape[-1]
        run = product(self._kernels, rows, x.dtype, self._gate, self._up)
        if run is None:
            y: mx.array = self._module(x)
            return y
        inner = run(x.reshape(rows, -1), self._gate, self._up)
        y = self._module.down_proj(inner.reshape(*x.shape[:-1], -1))
        return y


def product(
    kernels: Kernels, rows: int, dtype: mx.Dtype, weight: Weight, up: PackedWeight | None = None
) -> Run | None:
    """What multiplies so many rows of that type with a weight; None for MLX."""
    if not 1 <= rows <= MAX_ROWS or dtype not in DTYPES:
        return None
    small = partial(example, rows, dtype, weight, up)
    if not isinstance(weight, PackedWeight):
        kind: tuple[Any, ...] = (dtype, rows <= 8, dense_tile_rows(weight.shape[0], None))
        return kernels.pick(DENSE, kind, small, rows=rows) if dtype == weight.dtype else None
    kind = (dtype, weight.scales.dtype, *weight[3:], up is not None)
    # Where kernels are asked for, one of them serves every width, so that all round alike.
    if rows <= SCALAR_ROWS and kernels.mode == "auto":
        each = rows_each(weight.shape[0], None, up is not None)
        scalar = partial(scalar_example, rows, dtype, weight, up)
        if run := kernels.pick(SCALAR, (*kind, rows, each), scalar, rows=rows):
            return run
    tile = tile_rows(weight.shape[0], None, up is not None)
    return kernels.pick(QUANTISED, (*kind, rows <= 8, tile), small, rows=rows)


def example(rows: int, dtype: mx.Dtype, weight: Weight, up: PackedWeight | None) -> Example:
    """Some rows of x and the first rows of the weight."""
    arguments = _few(rows, dtype, weight, up)
    if not isinstance(weight, PackedWeight):
        return Example(arguments, geometry={"rows": dense_tile_rows(weight.shape[0], None)})
    tile = tile_rows(weight.shape[0], None, up is not None)
    return Example(arguments, geometry={"rows": tile if up is None else 2 * tile})


def scalar_example(
    rows: int, dtype: mx.Dtype, weight: PackedWeight, up: PackedWeight | None
) -> Example:
    """The same for the kernel without matrices."""
    each = rows_each(weight.shape[0], None, up is not None)
    geometry = {"rows": each if up is None else 2 * each}
    return Example(_few(rows, dtype, weight, up), geometry=geometry)


def _few(rows: int, dtype: mx.Dtype, weight: Weight, up: PackedWeight | None) -> tuple[Any, ...]:
    x = mx.random.normal((rows, weight.shape[1]), key=mx.random.key(0)).astype(dtype)
    if isinstance(weight, PackedWeight):
        return (x, *[w.first(EXAMPLE_ROWS) for w in (weight, up) if w])
    return (x, weight[:EXAMPLE_ROWS])
