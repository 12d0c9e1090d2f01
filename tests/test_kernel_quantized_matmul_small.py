"""The kernel `quantized_matmul_small`, run on the CPU, against float32 MLX."""

import mlx.core as mx
import pytest

from dflash_mlx.kernels.quantized_matmul_small import (
    BITS,
    DTYPES,
    GROUP_SIZES,
    THREADS,
    PackedWeight,
    quantized_matmul_small_metal,
    quantized_matmul_small_reference,
)
from tests.metal_cpu import Options, coverage
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
    allowed = HALF_STEP[x.dtype] * mx.abs(wanted) + 2e-6 * mx.abs(wanted).max()
    assert bool((mx.abs(found.astype(mx.float32) - wanted) <= allowed).all())


def bits_of(y: mx.array) -> mx.array:
    return y.view(mx.uint32 if y.dtype == mx.float32 else mx.uint16)


def same(a: mx.array, b: mx.array) -> bool:
    return a.shape == b.shape and bool(mx.array_equal(bits_of(a), bits_of(b)))


def test_the_reference_is_mlx_in_float32():
    x, weight, up = case(5, 24, 128, mx.float32, 64, 4, fused=True)
    gate, second = (
        mx.quantized_matmul(x, *p[:3], group_size=p.group_size, bits=p.bits) for p in (weight, up)
    )
    wanted = gate / (1 + mx.exp(-gate)) * second
    assert mx.allclose(quantized_matmul_small_reference(x, weight), gate, atol=1e-5)
    assert mx.allclose(quantized_matmul_small_reference(x, weight, up), wanted, atol=1e-5)
    assert weight.shape == (24, 128)


# M, N and groups per row go round with the packing, so that odd ones meet every kind of it.
KINDS = [(bits, group) for bits in BITS for group in GROUP_SIZES]


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_every_packing(bits: int, group: int, emulate):
    emulate(Options())
    at = KINDS.index((bits, group))
    m, n, groups = (3, 16, 8, 13, 1)[at % 5], (9, 40, 17, 7)[at % 4], (1, 5, 3, 11)[at % 4]
    arguments = case(m, n, group * groups, DTYPES[at % 3], group, bits)
    check(arguments, quantized_matmul_small_metal(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_every_packing_in_every_dtype(bits: int, group: int, dtype: mx.Dtype, fused: bool, emulate):
    emulate(Options(order="random", seed=bits))
    for m, n, groups in ((1, 7, 1), (8, 19, 3), (11, 24, 8), (16, 33, 2)):
        arguments = case(m, n, group * groups, dtype, group, bits, fused)
        check(arguments, quantized_matmul_small_metal(*arguments, threads=64))


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("how", MATRIX)
def test_orders_and_checked_build(how: str, fused: bool, emulate):
    emulate(MATRIX[how])
    arguments = case(11, 19, 352, mx.bfloat16, 32, 5, fused)
    check(arguments, quantized_matmul_small_metal(*arguments, threads=128))


@pytest.mark.parametrize("threads", THREADS)
def test_every_size_of_threadgroup(threads: int, emulate):
    kernels = emulate(Options())
    for k in (64, 640):  # fewer and more pieces of K than there are simdgroups
        arguments = case(5, 20, k, mx.float16, 64, 4)
        check(arguments, quantized_matmul_small_metal(*arguments, threads=threads))
    assert kernels[0].report.threads == 3 * threads


@pytest.mark.parametrize("fused", FUSED)
def test_rows_of_a_threadgroup_change_no_bit(fused: bool, emulate):
    kernels = emulate(Options())
    arguments = case(16, 72, 192, mx.float32, 64, 4, fused)
    found = [
        quantized_matmul_small_metal(*arguments, rows=rows) for rows in (32, 16, 8)[: 3 - fused]
    ]
    check(arguments, found[0])
    assert all(same(y, found[0]) for y in found)
    assert [r.groups for r in kernels[0].reports] == ([5, 9] if fused else [3, 5, 9])
    assert all(r.threadgroup_bytes <= 32768 for r in kernels[0].reports)


def test_few_threadgroups_become_more(emulate):
    kernels = emulate(Options())
    for n, groups in ((2047, 256), (2048, 128), (4096, 128)):
        arguments = case(1, n, 32, mx.bfloat16, 32, 2)
        check(arguments, quantized_matmul_small_metal(*arguments, threads=32))
        assert kernels[0].report.groups == groups


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_depends_on_no_other(dtype: mx.Dtype, fused: bool, emulate):
    emulate(Options())
    x, *packed = case(16, 12, 320, dtype, 64, 4, fused)
    whole = quantized_matmul_small_metal(x, *packed)
    check((x, *packed), whole)
    for i in range(16):
        assert same(quantized_matmul_small_metal(x[i : i + 1], *packed), whole[i : i + 1])
    for m in range(2, 16):
        assert same(quantized_matmul_small_metal(x[16 - m :], *packed), whole[16 - m :])


def test_a_row_that_is_no_number_stays_alone(emulate):
    emulate(Options())
    x, weight = case(13, 9, 96, mx.float32, 32, 6)
    whole = quantized_matmul_small_metal(x, weight)
    rows = mx.arange(13)[:, None]
    y = quantized_matmul_small_metal(mx.where(rows == 4, mx.nan, x), weight)
    assert bool(mx.isnan(y[4]).all())
    assert same(mx.where(rows == 4, whole, y), whole)


@pytest.mark.parametrize("bits", [2, 6])
@pytest.mark.parametrize("how", ["asc", "checked"])
def test_arrays_of_fewer_than_eight_elements(how: str, bits: int, emulate):
    """MLX passes those as constant instead of device memory."""
    emulate(MATRIX[how])
    arguments = case(2, 1, 32, mx.bfloat16, 32, bits)
    check(arguments, quantized_matmul_small_metal(*arguments))


def test_scales_may_have_another_dtype_than_x(emulate):
    emulate(Options())
    x, weight = case(4, 16, 128, mx.bfloat16, 64, 4)
    arguments = (x.astype(mx.float32), weight)
    check(arguments, quantized_matmul_small_metal(*arguments))


def test_a_gate_far_from_zero(emulate):
    emulate(Options())
    x, weight, up = case(8, 16, 64, mx.float32, 32, 8, fused=True)
    y = quantized_matmul_small_metal(100 * x, weight, up)
    assert not bool(mx.isnan(y).any())
    check((100 * x, weight, up), y)


def test_inputs_with_gaps_are_copied_by_mlx(emulate):
    emulate(Options())
    x, weight = case(6, 16, 128, mx.float16, 64, 4)
    wide = mx.concatenate([x, x], axis=1)
    y = quantized_matmul_small_metal(wide[:, 128:], weight)
    assert same(y, quantized_matmul_small_metal(x, weight))


@pytest.mark.parametrize("bits", BITS)
def test_weights_are_read_once_and_products_are_all_useful(bits: int, emulate):
    kernels = emulate(Options(traffic=True))
    for m, fused in ((8, False), (16, False), (16, True)):
        arguments = case(m, 64, 512, mx.bfloat16, 64, bits, fused)
        check(arguments, quantized_matmul_small_metal(*arguments, rows=32))
        report = kernels[0].report
        for name in ("w", "up_w") if fused else ("w",):
            assert report.buffers[name].passes == 1
            assert report.buffers[name].requested == 1
        for name in ("scales", "biases"):
            assert report.buffers[name].passes == 1
        assert report.matrix_flops == 2 * m * 64 * 512 * (1 + fused)
        # threadgroup memory holds sums only: 8 simdgroups, 64 columns of m sums, written once
        assert report.threadgroup_written == 4 * 8 * 64 * m * (1 + fused)
        assert report.barriers == report.groups
        assert report.buffers["y"].write.lane_bytes == report.buffers["y"].size


@pytest.mark.parametrize("m", [1, 2, 4, 5, 12])
def test_other_numbers_of_rows_cost_no_more_weight(m: int, emulate):
    kernels = emulate(Options(traffic=True))
    arguments = case(m, 32, 256, mx.bfloat16, 64, 4)
    check(arguments, quantized_matmul_small_metal(*arguments, threads=64))
    report = kernels[0].report
    assert report.buffers["w"].passes == report.buffers["w"].requested == 1
    assert report.matrix_flops == 2 * (8 if m <= 8 else 16) * 32 * 256


def test_every_line_runs(emulate):
    kernels = emulate(Options(coverage=True))
    arguments = case(9, 9, 96, mx.bfloat16, 32, 3, fused=True)
    quantized_matmul_small_metal(*arguments, threads=32)
    coverage.check(kernels[0].reports, "quantized_matmul_small", "quantized_matmul_small header")


X, WEIGHT, UP = case(4, 16, 128, mx.bfloat16, 64, 4, fused=True)
REFUSED = {
    "no rows": ((X[:0], WEIGHT), {}, "1 to 16 rows"),
    "17 rows": ((mx.zeros((17, 128)), WEIGHT), {}, "1 to 16 rows"),
    "three dimensions": ((X[None], WEIGHT), {}, "1 to 16 rows"),
    "integers": ((X.astype(mx.int32), WEIGHT), {}, "x is mlx.core.int32"),
    "another K": ((X[:, :64], WEIGHT), {}, "weight.w is"),
    "bits": ((X, WEIGHT._replace(bits=7)), {}, "7 bits by 64"),
    "group": ((X, WEIGHT._replace(group_size=16)), {}, "4 bits by 16"),
    "group does not fit": ((X, WEIGHT._replace(group_size=128)), {}, "weight.scales is"),
    "biases of another shape": ((X, WEIGHT._replace(biases=UP.biases[:3])), {}, "weight.biases is"),
    "mixed scales": ((X, WEIGHT._replace(biases=UP.biases.astype(mx.float32))), {}, "alike"),
    "no columns": ((X, PackedWeight(*(a[:0] for a in WEIGHT[:3]), 64, 4)), {}, "weight.w is"),
    "signed words": ((X, WEIGHT._replace(w=WEIGHT.w.view(mx.int32))), {}, "expected uint32"),
    "up of another size": (
        (X, WEIGHT, PackedWeight(*(a[:8] for a in UP[:3]), 64, 4)),
        {},
        "up.w is",
    ),
    "threads": ((X, WEIGHT), {"threads": 96}, "threads=96"),
    "rows": ((X, WEIGHT), {"rows": 12}, "rows=12"),
    "8 rows of two weights": ((X, WEIGHT, UP), {"rows": 8}, "rows=8"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused(what: str):
    arguments, options, text = REFUSED[what]
    with pytest.raises(ValueError, match=text):
        quantized_matmul_small_metal(*arguments, **options)
