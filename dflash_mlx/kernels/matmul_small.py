"""A few rows times a dense weight: drafts that are not quantised, at their block of 16.

The kernel reads the weight once and works on 8 or 16 rows of x; MLX's own pads 16 rows to 64. A
row's result depends neither on the other rows nor on their number.
"""

from __future__ import annotations

import mlx.core as mx

from .source import kernel

MAX_ROWS = 16
THREADS = (256, 128, 64, 32)  # from the best to what every chip can launch
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
# This many threadgroups should be there before they are made larger: chips have 8 to 80 cores.
ENOUGH_GROUPS = 128


def matmul_small_reference(x: mx.array, w: mx.array) -> mx.array:
    """x [M, K] times w^T, w [N, K]: [M, N] of x's dtype, computed in float32, rounded once."""
    return (x.astype(mx.float32) @ w.astype(mx.float32).T).astype(x.dtype)


def matmul_small_metal(
    x: mx.array, w: mx.array, *, threads: int = THREADS[0], rows: int | None = None
) -> mx.array:
    """As the reference, by `metal/matmul_small.metal`.

    Args:
        x: [M, K], M from 1 to 16.
        w: [N, K], of x's dtype.
        threads: per threadgroup, one of THREADS. The order of additions follows from it.
        rows: of w per threadgroup, 8, 16 or 32; chosen by N if None. Changes no result.

    Raises:
        ValueError: shapes, dtypes or options that the kernel does not take.
    """
    _check(x, w, threads)
    m, n = x.shape[0], w.shape[0]
    rows = tile_rows(n, rows)
    run = kernel("matmul_small", ("x", "w"), ("y",))
    (y,) = run(
        inputs=[x, w],
        output_shapes=[(m, n)],
        output_dtypes=[x.dtype],
        grid=(threads * -(-n // rows), 1, 1),
        threadgroup=(threads, 1, 1),
        template=[
            ("T", x.dtype),
            ("ROWS", rows),
            ("TILES_M", -(-m // 8)),
            ("SIMDS", threads // 32),
        ],
    )
    result: mx.array = y
    return result


def tile_rows(n: int, rows: int | None) -> int:
    """Rows of w per threadgroup: many share the reading of x, few fill more cores."""
    if rows is None:
        return next((r for r in (32, 16) if n >= r * ENOUGH_GROUPS), 8)
    if rows not in (32, 16, 8):
        raise ValueError(f"rows={rows}, expected 8, 16 or 32")
    return rows


def _check(x: mx.array, w: mx.array, threads: int) -> None:
    if threads not in THREADS:
        raise ValueError(f"threads={threads}, expected one of {THREADS}")
    if x.ndim != 2 or not 1 <= x.shape[0] <= MAX_ROWS or x.shape[1] == 0 or x.dtype not in DTYPES:
        raise ValueError(
            f"x is {x.dtype} {x.shape}, expected 1 to {MAX_ROWS} rows [M, K] of one of {DTYPES}"
        )
    if w.ndim != 2 or w.shape[0] == 0 or w.shape[1] != x.shape[1] or w.dtype != x.dtype:
        raise ValueError(f"w is {w.dtype} {w.shape}, expected {x.dtype} [N, {x.shape[1]}]")
