"""The kernel `matmul_small`, run on the CPU, against float32 MLX."""

import mlx.core as mx
import pytest

from dflash_mlx.kernels.matmul_small import (
    DTYPES,
    THREADS,
    matmul_small_metal,
    matmul_small_reference,
)
from tests.metal_cpu import Options, coverage
from tests.metal_cpu.fixture import MATRIX

HALF_STEP = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}


def case(m: int, n: int, k: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """x and w."""
    mx.random.seed(m + 100 * n + k)
    x, w = mx.random.normal((m, k)), mx.random.normal((n, k)) * k**-0.5
    return x.astype(dtype), w.astype(dtype)


def check(arguments: tuple[mx.array, mx.array], found: mx.array) -> None:
    """Every element is the float32 result, rounded to x's dtype; sums may err by a few ulps."""
    x, w = arguments
    wanted = matmul_small_reference(x.astype(mx.float32), w)
    assert found.shape == wanted.shape and found.dtype == x.dtype
    allowed = HALF_STEP[x.dtype] * mx.abs(wanted) + 2e-6 * mx.abs(wanted).max()
    assert bool((mx.abs(found.astype(mx.float32) - wanted) <= allowed).all())


def same(a: mx.array, b: mx.array) -> bool:
    kind = mx.uint32 if a.dtype == mx.float32 else mx.uint16
    return a.shape == b.shape and bool(mx.array_equal(a.view(kind), b.view(kind)))


def test_the_reference_rounds_once():
    x, w = case(3, 40, 200, mx.bfloat16)
    y = matmul_small_reference(x, w)
    wanted = mx.array([[float((a * b).sum()) for b in w.astype(mx.float32)] for a in x])
    assert y.dtype == mx.bfloat16
    assert bool((mx.abs(y - wanted) <= 2.0**-8 * mx.abs(wanted) + 1e-6).all())


# M, N, K: whole tiles, tails of each, and arrays of fewer than eight elements.
SHAPES = [(16, 24, 64), (3, 9, 97), (8, 17, 5), (13, 8, 300), (2, 1, 3), (1, 2, 1), (9, 33, 36)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, int, int], dtype: mx.Dtype, emulate):
    emulate(Options())
    arguments = case(*shape, dtype)
    check(arguments, matmul_small_metal(*arguments, threads=64))


@pytest.mark.parametrize("how", MATRIX)
@pytest.mark.parametrize("shape", [(11, 19, 332), (2, 1, 3)])
def test_orders_and_checked_build(shape: tuple[int, int, int], how: str, emulate):
    emulate(MATRIX[how])
    arguments = case(*shape, mx.bfloat16)
    check(arguments, matmul_small_metal(*arguments, threads=128))


@pytest.mark.parametrize("threads", THREADS)
def test_every_size_of_threadgroup(threads: int, emulate):
    kernels = emulate(Options())
    for k in (40, 600):  # fewer and more pieces of K than there are simdgroups
        arguments = case(5, 20, k, mx.float16)
        check(arguments, matmul_small_metal(*arguments, threads=threads))
    assert kernels[0].report.threads == 3 * threads


def test_rows_of_a_threadgroup_change_no_bit(emulate):
    kernels = emulate(Options())
    arguments = case(16, 72, 192, mx.float32)
    found = [matmul_small_metal(*arguments, rows=rows) for rows in (32, 16, 8)]
    check(arguments, found[0])
    assert all(same(y, found[0]) for y in found)
    assert [r.groups for r in kernels[0].reports] == [3, 5, 9]
    assert all(r.threadgroup_bytes <= 32768 for r in kernels[0].reports)


def test_few_threadgroups_become_more(emulate):
    kernels = emulate(Options())
    for n, groups in ((2047, 256), (2048, 128), (4096, 128)):
        arguments = case(1, n, 8, mx.bfloat16)
        check(arguments, matmul_small_metal(*arguments, threads=32))
        assert kernels[0].report.groups == groups


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_depends_on_no_other(dtype: mx.Dtype, emulate):
    emulate(Options())
    x, w = case(16, 12, 330, dtype)
    whole = matmul_small_metal(x, w)
    check((x, w), whole)
    for i in range(16):
        assert same(matmul_small_metal(x[i : i + 1], w), whole[i : i + 1])
    for m in range(2, 16):
        assert same(matmul_small_metal(x[16 - m :], w), whole[16 - m :])


def test_a_row_that_is_no_number_stays_alone(emulate):
    emulate(Options())
    x, w = case(13, 9, 100, mx.float32)
    whole = matmul_small_metal(x, w)
    rows = mx.arange(13)[:, None]
    y = matmul_small_metal(mx.where(rows == 4, mx.nan, x), w)
    assert bool(mx.isnan(y[4]).all())
    assert same(mx.where(rows == 4, whole, y), whole)


@pytest.mark.parametrize("m", [1, 2, 4, 5, 8, 12, 16])
def test_weights_are_read_once_and_padded_to_8_rows_only(m: int, emulate):
    kernels = emulate(Options(traffic=True))
    arguments = case(m, 64, 512, mx.bfloat16)
    check(arguments, matmul_small_metal(*arguments, rows=32))
    report = kernels[0].report
    assert report.buffers["w"].passes == report.buffers["w"].requested == 1
    padded = 8 if m <= 8 else 16
    assert report.matrix_flops == 2 * padded * 64 * 512
    # threadgroup memory holds sums only: of 8 simdgroups, written once
    assert report.threadgroup_written == 4 * 8 * padded * 64
    assert report.barriers == report.groups
    assert report.buffers["y"].write.lane_bytes == report.buffers["y"].size


def test_every_line_runs(emulate):
    kernels = emulate(Options(coverage=True))
    arguments = case(9, 9, 97, mx.bfloat16)
    matmul_small_metal(*arguments, threads=32)
    coverage.check(kernels[0].reports, "matmul_small", "matmul_small header")


X, W = case(4, 16, 128, mx.bfloat16)
REFUSED = {
    "no rows": ((X[:0], W), {}, "1 to 16 rows"),
    "17 rows": ((mx.zeros((17, 128)), W), {}, "1 to 16 rows"),
    "three dimensions": ((X[None], W), {}, "1 to 16 rows"),
    "integers": ((X.astype(mx.int32), W), {}, "x is mlx.core.int32"),
    "no K": ((X[:, :0], W[:, :0]), {}, "1 to 16 rows"),
    "another K": ((X[:, :64], W), {}, "w is"),
    "another dtype": ((X, W.astype(mx.float16)), {}, "w is mlx.core.float16"),
    "no columns": ((X, W[:0]), {}, "w is"),
    "threads": ((X, W), {"threads": 96}, "threads=96"),
    "rows": ((X, W), {"rows": 12}, "rows=12"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused(what: str):
    arguments, options, text = REFUSED[what]
    with pytest.raises(ValueError, match=text):
        matmul_small_metal(*arguments, **options)
