"""A few rows times the quantised weights of the experts that each row has chosen.

The kernel is that of `quantized_matmul_small`; rows that chose the same expert are worked on
together, so an expert's weights are read once per pass, where MLX's own reads them for every pair
of row and expert.
"""

from __future__ import annotations

import mlx.core as mx

from .quantized_matmul_small import THREADS, PackedWeight, check, launch


def gather_quantized_matmul_small_reference(
    x: mx.array, weight: PackedWeight, indices: mx.array, up: PackedWeight | None = None
) -> mx.array:
    """Each row times weight^T of each of its experts: [M, S, N], of x's dtype.

    All of it is computed in float32 and rounded once, at the end.

    Args:
        x: [M, K], or [M, S, K] where each expert has a row of its own.
        weight: of E experts, packed, [E, N, K].
        indices: uint32 [M, S], each below E.
        up: second weights; then silu(x weight^T) * (x up^T).
    """
    rows = mx.broadcast_to(x if x.ndim == 3 else x[:, None], (*indices.shape, x.shape[-1]))
    exact = rows.astype(mx.float32)[:, :, None]
    y = mx.gather_mm(exact, weight.dequantised().swapaxes(-1, -2), rhs_indices=indices)
    if up is not None:
        second = mx.gather_mm(exact, up.dequantised().swapaxes(-1, -2), rhs_indices=indices)
        y = y * mx.sigmoid(y) * second
    return y[:, :, 0].astype(x.dtype)


def gather_quantized_matmul_small_metal(
    x: mx.array,
    weight: PackedWeight,
    indices: mx.array,
    up: PackedWeight | None = None,
    *,
    threads: int = THREADS[0],
    rows: int | None = None,
) -> mx.array:
    """As the reference, by `metal/quantized_matmul_small.metal`.

    An expert's weights are read once for 16 rows that chose it (8 where M is 8 or less). An index
    that is not below E reads memory that is not there. `threads` and `rows` are those of
    `quantized_matmul_small_metal`.

    Raises:
        ValueError: shapes, dtypes or options that the kernel does not take.
    """
    if indices.dtype != mx.uint32 or indices.ndim != 2 or indices.size == 0:
        raise ValueError(f"indices are {indices.dtype} {indices.shape}, expected uint32 [M, S]")
    m, chosen = indices.shape
    if x.shape[:-1] not in ((m,), (m, chosen)):
        raise ValueError(f"x is {x.shape}, expected [{m}, K] or [{m}, {chosen}, K] as of indices")
    check(x, weight, up, 3, threads)
    n, k = weight.shape
    flat, tiles = indices.reshape(-1), 1 if m <= 8 else 2
    y = launch(x.reshape(-1, k), weight, up, flat, (m * chosen, n), threads, rows, tiles=tiles)
    return y.reshape(m, chosen, n)
