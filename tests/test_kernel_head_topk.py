"""The kernels `head_topk` and `head_topk_merge`, run on the CPU, against float32 MLX.

Most inputs are multiples of small powers of two, of which float32 sums are exact in any order: then
ids and values have to be those of the reference, equal logits included.
"""

import math

import mlx.core as mx
import pytest

from dflash_mlx.kernels import head_topk
from dflash_mlx.kernels.head_topk import TopK, head_topk_metal, head_topk_reference
from dflash_mlx.kernels.quantized_matmul_small import (
    BITS,
    DTYPES,
    GROUP_SIZES,
    THREADS,
    PackedWeight,
)
from tests.metal_cpu import Options, coverage
from tests.metal_cpu.fixture import MATRIX


def rows(m: int, k: int, dtype: mx.Dtype) -> mx.array:
    """x [m, k]: -1/4, 0 and 1/4."""
    mx.random.seed(m + k)
    return ((mx.random.randint(0, 3, (m, k)) - 1) / 4).astype(dtype)


def dense(n: int, k: int, dtype: mx.Dtype) -> mx.array:
    """A weight [n, k]: multiples of 1/64 between -1/2 and 1/2."""
    mx.random.seed(n + k)
    return (mx.random.randint(-32, 32, (n, k)) / 64).astype(dtype)


def packed(n: int, k: int, dtype: mx.Dtype, group: int, bits: int) -> PackedWeight:
    """A weight [n, k] of all values that there are; groups differ by powers of two."""
    mx.random.seed(n + k + bits)
    words = mx.random.randint(0, 1 << 16, (2, n, k * bits // 32)).astype(mx.uint32)
    scales = 2.0 ** (mx.random.randint(-1, 2, (n, k // group)) - bits)
    biases = -scales * 2 ** (bits - 1) + mx.random.randint(0, 2, scales.shape) / 2
    w = words[0] << 16 | words[1]
    return PackedWeight(w, scales.astype(dtype), biases.astype(dtype), group, bits)


def same(a: TopK, b: TopK) -> bool:
    """Whether all bits are."""
    pairs = zip(a, b, strict=True)
    return all(
        x.shape == y.shape and bool(mx.array_equal(x.view(mx.uint32), y.view(mx.uint32)))
        for x, y in pairs
    )


def choice(found: TopK) -> TopK:
    return found._replace(lse=found.ids)


def check(found: TopK, wanted: TopK) -> None:
    """Ids and values are to the bit what is wanted."""
    assert same(choice(found), choice(wanted))
    assert [a.dtype for a in found] == [mx.int32, mx.float32, mx.float32]
    assert found.lse.shape == wanted.lse.shape
    assert bool((mx.abs(found.lse - wanted.lse) <= 2e-6 * (1 + mx.abs(wanted.lse))).all())


@pytest.mark.parametrize("limit", [None, 40, 7])
def test_the_reference_is_a_sort(limit: int | None):
    x, weight = rows(3, 9, mx.bfloat16), dense(50, 9, mx.bfloat16)
    wide = mx.concatenate([weight[:30], weight[:20]])
    found = head_topk_reference(x, wide, 7, limit)
    for i in range(3):
        logits = [float((x[i].astype(mx.float32) * w.astype(mx.float32)).sum()) for w in wide]
        logits = logits[:limit]
        order = sorted(range(len(logits)), key=lambda n: (-logits[n], n))[:7]
        assert found.ids[i].tolist() == order
        assert found.values[i].tolist() == [logits[n] for n in order]
        wanted = math.log(sum(map(math.exp, logits)))
        assert float(found.lse[i]) == pytest.approx(wanted, rel=1e-6)


def test_the_reference_takes_packed_weights():
    x, weight = rows(3, 64, mx.float16), packed(20, 64, mx.float16, 32, 3)
    wanted = head_topk_reference(x.astype(mx.float32), weight.dequantised(), 4, 11)
    assert same(head_topk_reference(x, weight, 4, 11), wanted)


# M, N, groups per row and k go round with the packing, so that odd ones meet every kind of it.
KINDS = [(bits, group) for bits in BITS for group in GROUP_SIZES]


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_every_packing(bits: int, group: int, emulate):
    emulate(Options())
    at = KINDS.index((bits, group))
    m, n, parts = (3, 16, 8, 13, 1)[at % 5], (67, 33, 96, 7)[at % 4], (1, 5, 3, 11)[at % 4]
    keep, dtype = (1, 4, 32, 7)[at % 4], DTYPES[at % 3]
    x, weight = rows(m, group * parts, dtype), packed(n, group * parts, dtype, group, bits)
    check(head_topk_metal(x, weight, keep), head_topk_reference(x, weight, keep))


# M, N, K, k: whole tiles, tails of each, and arrays of fewer than eight elements.
SHAPES = [
    (16, 70, 64, 32),
    (3, 33, 97, 4),
    (8, 32, 5, 32),
    (13, 100, 300, 7),
    (9, 5, 36, 5),
    (2, 1, 3, 1),
    (1, 2, 1, 2),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_dense_shapes(shape: tuple[int, int, int, int], emulate):
    emulate(Options())
    m, n, k, keep = shape
    dtype = DTYPES[SHAPES.index(shape) % 3]
    x, weight = rows(m, k, dtype), dense(n, k, dtype)
    found = head_topk_metal(x, weight, keep, threads=64)
    check(found, head_topk_reference(x, weight, keep))


WEIGHTS = {
    "packed": packed(155, 320, mx.bfloat16, 64, 4),
    "dense": dense(155, 321, mx.bfloat16),
}


@pytest.mark.parametrize("how", MATRIX)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_orders_and_checked_build(kind: str, how: str, emulate):
    emulate(MATRIX[how])
    weight = WEIGHTS[kind]
    x = rows(11, weight.shape[1], mx.bfloat16)
    found = head_topk_metal(x, weight, 6, 150, threads=128, groups=3)
    check(found, head_topk_reference(x, weight, 6, 150))


@pytest.mark.parametrize("how", ["asc", "checked"])
def test_arrays_of_fewer_than_eight_elements(how: str, emulate):
    """MLX passes those as constant instead of device memory."""
    emulate(MATRIX[how])
    x, weight = rows(1, 32, mx.float16), packed(1, 32, mx.float16, 32, 6)
    check(head_topk_metal(x, weight), head_topk_reference(x, weight))
    x, weight = rows(2, 3, mx.float16), dense(2, 3, mx.float16)
    check(head_topk_metal(x, weight), head_topk_reference(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_sums_in_float32(dtype: mx.Dtype, emulate):
    emulate(Options())
    mx.random.seed(5)
    x = mx.random.normal((7, 200)).astype(dtype)
    weight = (mx.random.normal((90, 200)) / 8).astype(dtype)
    found, wanted = head_topk_metal(x, weight, 9), head_topk_reference(x, weight, 9)
    logits = x.astype(mx.float32) @ weight.astype(mx.float32).T
    assert mx.allclose(found.values, wanted.values, rtol=1e-6, atol=3e-6)
    assert mx.allclose(found.values, mx.take_along_axis(logits, found.ids, 1), rtol=0, atol=3e-6)
    assert mx.allclose(found.lse, wanted.lse, rtol=1e-6, atol=0)
    assert all(len(set(row)) == 9 for row in found.ids.tolist())


@pytest.mark.parametrize("m", [5, 16])
@pytest.mark.parametrize("threads", THREADS)
def test_every_size_of_threadgroup(threads: int, m: int, emulate):
    kernels = emulate(Options())
    for k in (64, 640):  # fewer and more pieces of K than there are simdgroups
        x, weight = rows(m, k, mx.float16), packed(70, k, mx.float16, 64, 4)
        found = head_topk_metal(x, weight, 3, threads=threads)
        check(found, head_topk_reference(x, weight, 3))
    if kernels:
        assert kernels[0].report.threads == 3 * threads
        assert kernels[1].report.threads == m * threads
        assert all(r.threadgroup_bytes <= 16384 for k in kernels for r in k.reports)


@pytest.mark.parametrize("keep", [1, 32])
def test_how_the_vocabulary_is_shared_changes_no_choice(keep: int, emulate):
    kernels = emulate(Options())
    x, weight = rows(9, 64, mx.float32), packed(331, 64, mx.float32, 64, 3)
    wanted = head_topk_reference(x, weight, keep)
    for groups in (1, 2, 4, 7, 11, None):
        check(head_topk_metal(x, weight, keep, threads=64, groups=groups), wanted)
    assert [r.groups for r in kernels[0].reports] == [1, 2, 4, 7, 11, 11]


@pytest.mark.parametrize("threads", [64, 32])
def test_many_strips(threads: int, emulate):
    """More than there are lanes in a simdgroup or threadgroup of the merge."""
    emulate(Options())
    x, weight = rows(2, 8, mx.float32), dense(1500, 8, mx.float32)
    found = head_topk_metal(x, weight, 3, threads=threads)
    check(found, head_topk_reference(x, weight, 3))


def test_strips_become_longer_not_more(emulate, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head_topk, "MOST_GROUPS", 4)
    kernels = emulate(Options())
    x = rows(2, 8, mx.float32)
    for n, groups in ((96, 3), (128, 4), (161, 4)):
        weight = dense(n, 8, mx.float32)
        check(head_topk_metal(x, weight, 5), head_topk_reference(x, weight, 5))
        assert kernels[0].report.groups == groups


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_row_depends_on_no_other(kind: str, dtype: mx.Dtype, emulate):
    emulate(Options())
    mx.random.seed(8)
    x = mx.random.normal((16, 128)).astype(dtype)
    w = mx.random.normal((75, 128)).astype(dtype)
    weight = w if kind == "dense" else PackedWeight(*mx.quantize(w, 64, 4), 64, 4)
    whole = head_topk_metal(x, weight, 5, groups=2)
    for i in range(16):
        alone = head_topk_metal(x[i : i + 1], weight, 5, groups=2)
        assert same(alone, TopK(*(a[i : i + 1] for a in whole)))
    for m in range(2, 16):
        last = head_topk_metal(x[16 - m :], weight, 5, groups=2)
        assert same(last, TopK(*(a[16 - m :] for a in whole)))


@pytest.mark.parametrize("groups", [1, 3, 5])
def test_of_equal_logits_the_lower_ids_come_first(groups: int, emulate):
    emulate(Options())
    weight = mx.zeros((150, 4))
    found = head_topk_metal(mx.ones((2, 4)), weight, 32, threads=128, groups=groups)
    assert found.ids.tolist() == [list(range(32))] * 2
    assert mx.allclose(found.lse, mx.full((2,), math.log(150)))
    at = (144, 3, 147, 70, 33, 36)  # in all strips, more than one in a tile
    weight = mx.where((mx.arange(150)[:, None] == mx.array(at)).any(-1, keepdims=True), 1.0, weight)
    found = head_topk_metal(mx.ones((1, 4)), weight, 8, threads=128, groups=groups)
    assert found.ids.tolist() == [[3, 33, 36, 70, 144, 147, 0, 1]]
    assert found.values.tolist() == [[4.0] * 6 + [0.0] * 2]


@pytest.mark.parametrize("keep", [1, 31])
def test_rising_and_falling_logits(keep: int, emulate):
    emulate(Options())
    steps = (mx.arange(100)[:, None] - 60) / 8
    x = mx.array([[1.0], [-1.0]])
    found = head_topk_metal(x, steps, keep, threads=64, groups=2)
    check(found, head_topk_reference(x, steps, keep))
    assert found.ids.tolist() == [list(range(99, 99 - keep, -1)), list(range(keep))]


def test_a_strip_may_have_fewer_logits_than_are_kept(emulate):
    emulate(Options())
    x = -mx.ones((1, 1))
    for n, keep, groups in ((33, 32, 2), (33, 3, 2), (32, 32, 1), (40, 20, 1)):
        weight = mx.ones((n, 1))
        found = head_topk_metal(x, weight, keep, groups=groups)
        assert found.ids.tolist() == [list(range(keep))]
        assert found.values.tolist() == [[-1.0] * keep]
        assert float(found.lse[0]) == pytest.approx(math.log(n) - 1, rel=1e-6)


def test_logits_far_from_zero(emulate):
    emulate(Options())
    x = mx.array([[1.0], [-1.0], [1e-30]])
    weight = mx.array([[-3e37], [2e37], [3e37], [-1e37]])
    found = head_topk_metal(x, weight, 2)
    assert found.ids.tolist() == [[2, 1], [0, 3], [2, 1]]
    assert mx.allclose(found.lse, mx.array([3e37, 3e37, 3e7]))
    low = head_topk_metal(mx.ones((1, 1)), mx.full((50, 1), -3e37), 2)
    assert low.ids.tolist() == [[0, 1]] and mx.allclose(low.lse, mx.array([-3e37]))


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("limit", [1, 99])
def test_rows_that_stand_for_no_token_are_not_read(limit: int, kind: str, emulate):
    kernels = emulate(Options(traffic=True))
    weight, keep = WEIGHTS[kind], min(limit, 6)
    x = rows(4, weight.shape[1], mx.bfloat16)
    found = head_topk_metal(x, weight, keep, limit, threads=32)
    check(found, head_topk_reference(x, weight, keep, limit))
    first = weight.first(limit).w if kind == "packed" else weight[:limit]
    assert [kernel.report.buffers["w"].size for kernel in kernels[:1]] == [first.nbytes]


def test_a_row_that_is_no_number_stays_alone(emulate):
    emulate(Options())
    x, weight = rows(13, 100, mx.float32), dense(40, 100, mx.float32)
    whole = head_topk_metal(x, weight, 3)
    bad = mx.arange(13)[:, None] == 4
    found = head_topk_metal(mx.where(bad, mx.nan, x), weight, 3)
    assert mx.isnan(found.lse).tolist() == [i == 4 for i in range(13)]
    assert bool(((found.ids >= 0) & (found.ids < 40)).all())
    kept = [i for i in range(13) if i != 4]
    assert same(TopK(*(a[kept] for a in found)), TopK(*(a[kept] for a in whole)))


def test_scales_may_have_another_dtype_than_x(emulate):
    emulate(Options())
    x, weight = rows(4, 128, mx.float32), packed(40, 128, mx.bfloat16, 64, 4)
    check(head_topk_metal(x, weight, 4), head_topk_reference(x, weight, 4))


def test_inputs_with_gaps_are_copied_by_mlx(emulate):
    emulate(Options())
    x, weight = rows(6, 100, mx.float16), dense(40, 100, mx.float16)
    wide, tall = mx.concatenate([x, x], axis=1), mx.concatenate([weight, weight], axis=1)
    found = head_topk_metal(wide[:, 100:], tall[:, 100:], 4)
    assert same(found, head_topk_metal(x, weight, 4))


@pytest.mark.parametrize("m", [1, 2, 4, 5, 8, 12, 16])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_weight_is_read_once_and_no_logits_are_written(kind: str, m: int, emulate):
    kernels = emulate(Options(traffic=True))
    n, k, keep, groups = 192, 512, 3, 2
    weight = dense(n, k, mx.bfloat16) if kind == "dense" else packed(n, k, mx.bfloat16, 64, 4)
    x = rows(m, k, mx.bfloat16)
    found = head_topk_metal(x, weight, keep, groups=groups)
    check(found, head_topk_reference(x, weight, keep))
    strips, merge = (kernel.report for kernel in kernels)
    assert strips.buffers["w"].passes == strips.buffers["w"].requested == 1
    if kind == "packed":
        assert strips.buffers["scales"].passes == strips.buffers["biases"].passes == 1
    padded = 8 if m <= 8 else 16
    assert strips.matrix_flops == 2 * padded * n * k
    # threadgroup memory holds sums only: of 8 simdgroups, written once
    assert strips.threadgroup_written == 4 * 8 * padded * n
    assert strips.barriers == 2 * n // 32
    for name, size in (("values", 4 * keep), ("ids", 4 * keep), ("tallies", 8)):
        left = strips.buffers[name]
        assert left.write.lane_bytes == left.size == m * groups * size
        assert merge.buffers[name].requested == 1
    assert merge.barriers == m


@pytest.mark.parametrize("kind", WEIGHTS)
def test_every_line_runs(kind: str, emulate):
    kernels = emulate(Options(coverage=True))
    n, k = 40, 96
    weight = dense(n, k, mx.bfloat16) if kind == "dense" else packed(n, k, mx.bfloat16, 32, 3)
    head_topk_metal(rows(9, k, mx.bfloat16), weight, 3, threads=64)
    for kernel, name in zip(kernels, ("head_topk", "head_topk_merge"), strict=True):
        coverage.check(kernel.reports, name, f"{name} header")


X, PACKED = rows(4, 128, mx.bfloat16), packed(40, 128, mx.bfloat16, 64, 4)
DENSE = dense(40, 128, mx.bfloat16)
REFUSED = {
    "no rows": ((X[:0], PACKED), {}, "1 to 16 rows"),
    "17 rows": ((mx.zeros((17, 128)), PACKED), {}, "1 to 16 rows"),
    "three dimensions": ((X[None], PACKED), {}, "1 to 16 rows"),
    "no K": ((X[:, :0], DENSE[:, :0]), {}, "1 to 16 rows"),
    "integers": ((X.astype(mx.int32), PACKED), {}, "x is mlx.core.int32"),
    "integers, dense": ((X.astype(mx.int32), DENSE.astype(mx.int32)), {}, "x is mlx.core.int32"),
    "another K": ((X[:, :64], PACKED), {}, "weight.w is"),
    "another K, dense": ((X[:, :64], DENSE), {}, "weight is"),
    "experts": ((X, DENSE[None]), {}, "weight is"),
    "no tokens": ((X, DENSE[:0]), {}, "weight is"),
    "another dtype": ((X, DENSE.astype(mx.float16)), {}, "weight is mlx.core.float16"),
    "bits": ((X, PACKED._replace(bits=7)), {}, "7 bits by 64"),
    "limit 0": ((X, PACKED, 1, 0), {}, "limit=0, expected 1 to 40"),
    "limit": ((X, DENSE, 1, 41), {}, "limit=41, expected 1 to 40"),
    "k 0": ((X, DENSE, 0), {}, "k=0, expected 1 to 32"),
    "k": ((X, PACKED, 33), {}, "k=33, expected 1 to 32"),
    "k above limit": ((X, PACKED, 6, 5), {}, "k=6, expected 1 to 5"),
    "threads": ((X, PACKED), {"threads": 96}, "threads=96"),
    "threads, dense": ((X, DENSE), {"threads": 512}, "threads=512"),
    "groups 0": ((X, PACKED), {"groups": 0}, "groups=0, expected 1 to 2"),
    "groups": ((X, DENSE, 1, 32), {"groups": 2}, "groups=2, expected 1 to 1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused(what: str):
    arguments, options, text = REFUSED[what]
    with pytest.raises(ValueError, match=text):
        head_topk_metal(*arguments, **options)
