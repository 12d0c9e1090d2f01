"""Memory traffic and matrix work of matmuls with few rows: our kernels beside MLX's own.

    python -m tests.measure.kernel_traffic [--n 128] [--k 1024] [--bits 4] [--json]

All kernels run on the CPU, on tests/metal_cpu, which counts. "weight" is the lines of the weight
read, summed over threadgroups, per line of the weight; "asked" the bytes of it that simdgroups
asked for, per byte; "x" the same lines of x; "flops" matrix work per useful work (-: none); and
"scratch" the bytes through threadgroup memory per byte of the weight, of which our kernels have
none that grows with K. Nothing of this depends on a chip.

MLX chooses among its kernels by chip: qmv on M1 and M2 and qmv_wide later, qmm_t from 6 to 13 rows
on; dense gemv_wide below 16 rows on M3 and later, else gemm.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from unittest.mock import patch

import mlx.core as mx

from dflash_mlx.kernels.matmul_small import matmul_small_metal
from dflash_mlx.kernels.quantized_matmul_rows import MAX_ROWS as SCALAR_ROWS
from dflash_mlx.kernels.quantized_matmul_rows import quantized_matmul_rows_metal
from dflash_mlx.kernels.quantized_matmul_small import PackedWeight, quantized_matmul_small_metal
from tests.metal_cpu import MetalKernel, Options, Report
from tests.metal_cpu import stock_matmul as stock

ROWS = (1, 2, 4, 5, 8, 12, 16)
TRAFFIC = Options(traffic=True)
COLUMNS = ("weight", "asked", "x", "flops", "scratch")


def ours(call: Callable[[], mx.array]) -> Report:
    """The report of the one kernel that `call` runs."""
    made: list[MetalKernel] = []

    def metal_kernel(**arguments: object) -> MetalKernel:
        made.append(MetalKernel(**arguments, options=TRAFFIC))  # type: ignore[arg-type]
        return made[-1]

    with patch.object(mx.fast, "metal_kernel", metal_kernel):
        call()
    (kernel,) = made
    return kernel.report


def quantised(
    m: int, n: int, k: int, group: int, bits: int
) -> Iterator[tuple[str, tuple[str, ...], int, Report]]:
    """Kernel, names of its weights, useful flops and report, at m rows."""
    x, w = mx.random.normal((m, k)).astype(mx.bfloat16), mx.random.normal((n, k))
    packed = PackedWeight(*mx.quantize(w.astype(mx.bfloat16), group, bits), group, bits)
    useful = 2 * m * n * k
    for stock_kernel in (stock.qmv, stock.qmv_wide, stock.qmm_t):
        _, report = stock_kernel(x, *packed, TRAFFIC)
        yield f"MLX {stock_kernel.__name__}", ("w",), useful, report
    if m <= SCALAR_ROWS:
        report = ours(lambda: quantized_matmul_rows_metal(x, packed, rows=4))
        yield "quantized_matmul_rows", ("w",), useful, report
    report = ours(lambda: quantized_matmul_small_metal(x, packed, rows=32))
    yield "quantized_matmul_small", ("w",), useful, report
    report = ours(lambda: quantized_matmul_small_metal(x, packed, packed, rows=32))
    yield "the same, gate and up", ("w", "up_w"), 2 * useful, report


def dense(m: int, n: int, k: int) -> Iterator[tuple[str, tuple[str, ...], int, Report]]:
    """As `quantised`, for a weight in bfloat16."""
    x, w = (mx.random.normal((rows, k)).astype(mx.bfloat16) for rows in (m, n))
    useful = 2 * m * n * k
    if 2 <= m <= 15:
        yield "MLX gemv_wide", ("mat",), useful, stock.gemv_wide(x, w, TRAFFIC)[1]
    yield "MLX gemm", ("B",), useful, stock.gemm(x, w, TRAFFIC)[1]
    yield "matmul_small", ("w",), useful, ours(lambda: matmul_small_metal(x, w, rows=32))


def figures(weights: tuple[str, ...], useful: int, report: Report) -> dict[str, float]:
    buffers = [report.buffers[name] for name in weights]
    x = next(report.buffers[name] for name in ("x", "in_vec", "A") if name in report.buffers)
    scratch = report.threadgroup_read + report.threadgroup_written
    values = (
        max(b.passes for b in buffers),
        max(b.requested for b in buffers),
        x.passes,
        report.matrix_flops / useful,
        scratch / sum(b.size for b in buffers),
    )
    return {name: round(value, 3) for name, value in zip(COLUMNS, values, strict=True)}


def rows_of_table(n: int, k: int, group: int, bits: int) -> Iterator[dict[str, object]]:
    for m in ROWS:
        for found in (quantised(m, n, k, group, bits), dense(m, n, k)):
            for name, *rest in found:
                yield {"rows": m, "kernel": name, **figures(*rest)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=128, help="columns of the result")
    parser.add_argument("--k", type=int, default=1024, help="columns of x")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    if not options.json:
        print(f"{'rows':>4}  {'kernel':<24}" + "".join(f"{c:>9}" for c in COLUMNS))
    for row in rows_of_table(options.n, options.k, options.group_size, options.bits):
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        shown = "".join(f"{row[c]:>9.2f}" if row[c] else f"{'-':>9}" for c in COLUMNS)
        print(f"{row['rows']:>4}  {row['kernel']:<24}{shown}", flush=True)


if __name__ == "__main__":
    main()
