"""The kernel `quantized_matmul_rows`, run on the CPU, against float32 MLX."""

import mlx.core as mx
import pytest

from dflash_mlx.kernels.quantized_matmul_rows import THREADS, quantized_matmul_rows_metal
from dflash_mlx.kernels.quantized_matmul_small import (
    BITS,
    DTYPES,
    GROUP_SIZES,
    PackedWeight,
    quantized_matmul_small_reference,
)
from tests.metal_cpu import Options, coverage
from tests.metal_cpu import stock_matmul as stock
from tests.metal_cpu.fixture import MATRIX

HALF_STEP = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
FUSED = [False, True]


def case(m: int, n: int, k: int, dtype: mx.Dtype, group: int, bits: int, fused: bool = False):
    """x, a packed weight and, if fused, a second one."""
    mx.random.seed(m + 100 * n + bits)
    x = mx.random.normal((m, k)).astype(dtype)
    packed = [
        PackedWeight(
            *mx.quantize(mx.random.normal((n, k)).astype(dtype) * k**-0.5, group, bits), group, bits
        )
        for _ in range(1 + fused)
    ]
    return (x, *packed)


def check(arguments, found: mx.array) -> None:
    """Every element is the float32 result, rounded to x's dtype; sums may err by a few ulps."""
    x, *packed = arguments
    wanted = quantized_matmul_small_reference(x.astype(mx.float32), *packed)
    assert found.shape == wanted.shape and found.dtype == x.dtype
    allowed = HALF_STEP[x.dtype] * mx.abs(wanted) + 5e-6 * mx.abs(wanted).max()
    assert bool((mx.abs(found.astype(mx.float32) - wanted) <= allowed).all())


def same(a: mx.array, b: mx.array) -> bool:
    kind = mx.uint32 if a.dtype == mx.float32 else mx.uint16
    return a.shape == b.shape and bool(mx.array_equal(a.view(kind), b.view(kind)))


# M, N and groups per row go round with the packing, so that odd ones meet every kind of it.
KINDS = [(bits, group) for bits in BITS for group in GROUP_SIZES]


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_every_packing(bits: int, group: int, emulate):
    emulate(Options())
    at = KINDS.index((bits, group))
    m, n, groups = at % 5 + 1, (9, 40, 17, 7)[at % 4], (1, 17, 5, 40)[at % 4]
    arguments = case(m, n, group * groups, DTYPES[at % 3], group, bits)
    check(arguments, quantized_matmul_rows_metal(*arguments, rows=(4, 2, 1)[at // 6]))


@pytest.mark.slow
@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_every_packing_in_every_dtype(bits: int, group: int, dtype: mx.Dtype, fused: bool, emulate):
    emulate(Options(order="random", seed=bits))
    for m, n, groups in ((1, 7, 1), (3, 19, 3), (4, 24, 18), (5, 33, 2)):
        arguments = case(m, n, group * groups, dtype, group, bits, fused)
        check(arguments, quantized_matmul_rows_metal(*arguments, threads=32))


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("how", MATRIX)
def test_orders_and_checked_build(how: str, fused: bool, emulate):
    emulate(MATRIX[how])
    arguments = case(5, 11, 1120, mx.bfloat16, 32, 5, fused)
    check(arguments, quantized_matmul_rows_metal(*arguments, rows=4))


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("how", ["asc", "unfused"])
def test_rows_and_threads_change_no_bit(how: str, fused: bool, emulate):
    kernels = emulate(MATRIX[how])
    arguments = case(4, 14, 576, mx.float32, 64, 4, fused)
    options = [(rows, threads) for rows in (4, 2, 1)[: 3 - fused] for threads in THREADS]
    found = [quantized_matmul_rows_metal(*arguments, rows=r, threads=t) for r, t in options]
    check(arguments, found[0])
    assert all(same(y, found[0]) for y in found)
    simdgroups = [-(-14 * (1 + fused) // rows) for rows, _ in options]
    assert [r.threads for r in kernels[0].reports] == [32 * s for s in simdgroups]


def test_few_simdgroups_become_more(emulate):
    kernels = emulate(Options())
    for n, simdgroups in ((1023, 1023), (1024, 512), (2047, 1024), (2048, 512)):
        arguments = case(1, n, 32, mx.bfloat16, 32, 2)
        check(arguments, quantized_matmul_rows_metal(*arguments))
        assert kernels[0].report.threads == 32 * simdgroups
    for n, simdgroups in ((1023, 1023), (1024, 512)):
        arguments = case(1, n, 32, mx.bfloat16, 32, 2, fused=True)
        check(arguments, quantized_matmul_rows_metal(*arguments))
        assert kernels[0].report.threads == 32 * simdgroups


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", ["asc", "unfused"])
def test_a_row_depends_on_no_other(how: str, dtype: mx.Dtype, fused: bool, emulate):
    emulate(MATRIX[how])
    x, *packed = case(5, 10, 640, dtype, 64, 4, fused)
    whole = quantized_matmul_rows_metal(x, *packed, rows=4)
    check((x, *packed), whole)
    for i in range(5):
        assert same(quantized_matmul_rows_metal(x[i : i + 1], *packed, rows=4), whole[i : i + 1])
    for m in range(2, 5):
        assert same(quantized_matmul_rows_metal(x[5 - m :], *packed, rows=4), whole[5 - m :])


def test_the_compiler_fuses_nothing_by_itself(emulate):
    """All multiply-adds are explicit: else it could fuse those of each instance differently."""
    arguments = case(3, 10, 640, mx.float32, 64, 4)
    found = []
    for how in ("asc", "unfused"):
        emulate(MATRIX[how])
        found.append(quantized_matmul_rows_metal(*arguments))
    assert same(*found)


def test_a_row_that_is_no_number_stays_alone(emulate):
    emulate(Options())
    x, weight = case(5, 9, 96, mx.float32, 32, 6)
    whole = quantized_matmul_rows_metal(x, weight)
    rows = mx.arange(5)[:, None]
    y = quantized_matmul_rows_metal(mx.where(rows == 3, mx.nan, x), weight)
    assert bool(mx.isnan(y[3]).all())
    assert same(mx.where(rows == 3, whole, y), whole)


@pytest.mark.parametrize("bits", [2, 6])
@pytest.mark.parametrize("how", ["asc", "checked"])
def test_arrays_of_fewer_than_eight_elements(how: str, bits: int, emulate):
    """MLX passes those as constant instead of device memory."""
    emulate(MATRIX[how])
    arguments = case(2, 1, 32, mx.bfloat16, 32, bits)
    check(arguments, quantized_matmul_rows_metal(*arguments, rows=4))


def test_scales_may_have_another_dtype_than_x(emulate):
    emulate(Options())
    x, weight = case(4, 16, 128, mx.bfloat16, 64, 4)
    arguments = (x.astype(mx.float32), weight)
    check(arguments, quantized_matmul_rows_metal(*arguments))


def test_a_gate_far_from_zero(emulate):
    emulate(Options())
    x, weight, up = case(3, 16, 64, mx.float32, 32, 8, fused=True)
    y = quantized_matmul_rows_metal(100 * x, weight, up)
    assert not bool(mx.isnan(y).any())
    check((100 * x, weight, up), y)


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_read_once(bits: int, emulate):
    kernels = emulate(Options(traffic=True))
    for m, fused in ((4, False), (5, True)):
        arguments = case(m, 32, 1024, mx.bfloat16, 64, bits, fused)
        check(arguments, quantized_matmul_rows_metal(*arguments, rows=4))
        report = kernels[0].report
        for name in ("w", "up_w") if fused else ("w",):
            assert report.buffers[name].passes == report.buffers[name].requested == 1
        for name in ("scales", "biases"):
            assert report.buffers[name].passes == 1
        assert report.matrix_flops == report.threadgroup_bytes == report.barriers == 0
        assert report.buffers["y"].write.lane_bytes == report.buffers["y"].size


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_where_mlx_reads_the_weight_for_each_row(m: int, emulate):
    kernels = emulate(Options(traffic=True))
    x, packed = case(m, 64, 1024, mx.bfloat16, 64, 4)
    check((x, packed), quantized_matmul_rows_metal(x, packed, rows=4))
    ours = kernels[0].report.buffers
    _, report = stock.qmv(x, *packed, Options(traffic=True))
    assert ours["w"].passes == ours["w"].requested == 1
    assert report.buffers["w"].passes == report.buffers["w"].requested == m
    # x is loaded once for four rows of the weight, as by MLX
    assert ours["x"].requested == 16 and report.buffers["x"].requested == 16


def test_every_line_runs(emulate):
    kernels = emulate(Options(coverage=True))
    arguments = case(2, 9, 96, mx.bfloat16, 32, 3, fused=True)
    quantized_matmul_rows_metal(*arguments, threads=32)
    coverage.check(kernels[0].reports, "quantized_matmul_rows", "quantized_matmul_rows header")


X, WEIGHT, UP = case(4, 16, 128, mx.bfloat16, 64, 4, fused=True)
REFUSED = {
    "no rows": ((X[:0], WEIGHT), {}, "1 to 5 rows"),
    "6 rows": ((mx.zeros((6, 128)), WEIGHT), {}, "1 to 5 rows"),
    "three dimensions": ((X[None], WEIGHT), {}, "1 to 5 rows"),
    "integers": ((X.astype(mx.int32), WEIGHT), {}, "x is mlx.core.int32"),
    "another K": ((X[:, :64], WEIGHT), {}, "weight.w is"),
    "bits": ((X, WEIGHT._replace(bits=7)), {}, "7 bits by 64"),
    "up of another size": (
        (X, WEIGHT, PackedWeight(*(a[:8] for a in UP[:3]), 64, 4)),
        {},
        "up.w is",
    ),
    "threads": ((X, WEIGHT), {"threads": 128}, "threads=128"),
    "rows": ((X, WEIGHT), {"rows": 8}, "rows=8"),
    "1 row of two weights": ((X, WEIGHT, UP), {"rows": 1}, "rows=1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused(what: str):
    arguments, options, text = REFUSED[what]
    with pytest.raises(ValueError, match=text):
        quantized_matmul_rows_metal(*arguments, **options)
