"""One to five rows times an affine-quantised weight, on chips without fast matrix units.

On M1 and M2 MLX reads the weight once per row. This kernel reads it once for all, and does without
simdgroup matrices: they would work on 8 rows whatever there are. Its definition is
`quantized_matmul_small_reference`; the results of the two kernels differ in the order of sums.
"""

from __future__ import annotations

import mlx.core as mx

from .quantized_matmul_small import PackedWeight, check
from .source import kernel

MAX_ROWS = 5
THREADS = (64, 32)  # from the best to what every chip can launch
# This many simdgroups should be there before they get more rows of the weight each.
ENOUGH_SIMDGROUPS = 512
INPUTS = ("x", "w", "scales", "biases", "up_w", "up_scales", "up_biases")


def quantized_matmul_rows_metal(
    x: mx.array,
    weight: PackedWeight,
    up: PackedWeight | None = None,
    *,
    threads: int = THREADS[0],
    rows: int | None = None,
) -> mx.array:
    """As `quantized_matmul_small_reference`, by `metal/quantized_matmul_rows.metal`.

    Args:
        x: [M, K], M from 1 to 5.
        weight: [N, K], packed.
        up: a second weight, packed in the same way; then `weight` is the gate of a SwiGLU.
        threads: per threadgroup, one of THREADS.
        rows: of the weights (both together) per simdgroup, 1, 2 or 4; chosen by N if None.
            Neither this nor `threads` changes a result.

    Raises:
        ValueError: shapes, dtypes or options that the kernel does not take.
    """
    if x.ndim != 2 or not 1 <= x.shape[0] <= MAX_ROWS:
        raise ValueError(f"x is {x.shape}, expected 1 to {MAX_ROWS} rows [M, K]")
    if threads not in THREADS:
        raise ValueError(f"threads={threads}, expected one of {THREADS}")
    check(x, weight, up, 2, threads)
    m, n = x.shape[0], weight.shape[0]
    each = rows_each(n, rows, fused=up is not None)
    template = [
        ("T", x.dtype),
        ("BITS", weight.bits),
        ("GROUP", weight.group_size),
        ("M", m),
        ("ROWS", each),
        ("SWIGLU", int(up is not None)),
    ]
    (y,) = kernel("quantized_matmul_rows", INPUTS, ("y",))(
        inputs=[x, *weight[:3], *(up or weight)[:3]],
        output_shapes=[(m, n)],
        output_dtypes=[x.dtype],
        grid=(32 * -(-n // each), 1, 1),
        threadgroup=(threads, 1, 1),
        template=template,
    )
    result: mx.array = y
    return result


def rows_each(n: int, rows: int | None, fused: bool) -> int:
    """Rows of each weight per simdgroup: many share what is loaded of x, few fill more cores."""
    least = 2 if fused else 1
    if rows is None:
        rows = next((r for r in (4, 2) if n >= r // least * ENOUGH_SIMDGROUPS), least)
    if rows not in (4, 2, 1) or rows < least:
        raise ValueError(f"rows={rows}, expected 1 (for one weight), 2 or 4")
    return rows // least
