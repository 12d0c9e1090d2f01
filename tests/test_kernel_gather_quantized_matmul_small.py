"""`quantized_matmul_small` for experts, run on the CPU, against float32 MLX."""

import mlx.core as mx
import pytest

from dflash_mlx.kernels.gather_quantized_matmul_small import (
    gather_quantized_matmul_small_metal,
    gather_quantized_matmul_small_reference,
)
from dflash_mlx.kernels.quantized_matmul_small import (
    DTYPES,
    PackedWeight,
    quantized_matmul_small_metal,
)
from tests.metal_cpu import Options, coverage
from tests.metal_cpu.fixture import MATRIX

HALF_STEP = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
FUSED = [False, True]
EXPERTS = 9


def case(m, chosen, n, k, dtype, fused=False, own_rows=False, group=32, bits=4):
    """x, weights of EXPERTS experts, indices, and second weights or None."""
    mx.random.seed(m + n)
    x = mx.random.normal((m, chosen, k) if own_rows else (m, k)).astype(dtype)
    packed = [
        PackedWeight(
            *mx.quantize(mx.random.normal((EXPERTS, n, k)).astype(dtype) * k**-0.5, group, bits),
            group,
            bits,
        )
        for _ in range(2)
    ]
    order = mx.argsort(mx.random.normal((m, EXPERTS)), axis=1)
    indices = order[:, :chosen].astype(mx.uint32)
    return x, packed[0], indices, packed[1] if fused else None


def check(arguments, found: mx.array) -> None:
    """Every element is the float32 result, rounded to x's dtype; sums may err by a few ulps."""
    x, *rest = arguments
    wanted = gather_quantized_matmul_small_reference(x.astype(mx.float32), *rest)
    assert found.shape == wanted.shape and found.dtype == x.dtype
    allowed = HALF_STEP[x.dtype] * mx.abs(wanted) + 2e-6 * mx.abs(wanted).max()
    assert bool((mx.abs(found.astype(mx.float32) - wanted) <= allowed).all())


def same(a: mx.array, b: mx.array) -> bool:
    kind = mx.uint32 if a.dtype == mx.float32 else mx.uint16
    return a.shape == b.shape and bool(mx.array_equal(a.view(kind), b.view(kind)))


@pytest.mark.parametrize("own_rows", [False, True])
def test_the_reference_takes_the_chosen_weight(own_rows: bool):
    arguments = x, weight, indices, up = case(3, 2, 8, 64, mx.float32, True, own_rows)
    y = gather_quantized_matmul_small_reference(*arguments)
    for i in range(3):
        for j in range(2):
            row = x[i, j] if own_rows else x[i]
            gate, second = (p.dequantised()[indices[i, j].item()] @ row for p in (weight, up))
            assert mx.allclose(y[i, j], gate / (1 + mx.exp(-gate)) * second, atol=1e-5)


@pytest.mark.parametrize("own_rows", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "chosen"), [(1, 1), (2, 3), (7, 6), (16, 5)])
def test_parity(m: int, chosen: int, dtype: mx.Dtype, own_rows: bool, emulate):
    emulate(Options())
    arguments = case(m, chosen, 11, 96, dtype, False, own_rows)
    check(arguments, gather_quantized_matmul_small_metal(*arguments, threads=64))


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("how", MATRIX)
def test_orders_and_checked_build(how: str, fused: bool, emulate):
    emulate(MATRIX[how])
    arguments = case(12, 4, 9, 160, mx.bfloat16, fused, group=32, bits=5)
    check(arguments, gather_quantized_matmul_small_metal(*arguments, threads=128))


@pytest.mark.parametrize("m", [8, 16])
def test_more_rows_for_an_expert_than_fit_are_taken_in_turns(m: int, emulate):
    """Rows may choose one expert repeatedly: 16, 17 or 32 pairs of it, say."""
    emulate(Options(checked=True))
    x, weight, _, _ = case(m, 4, 8, 32, mx.float32)
    for most in (7, 8, 9, 15, 16, 17, 31, 32):
        flat = [3] * most + [i % EXPERTS for i in range(4 * m - most)]
        indices = mx.array(flat, mx.uint32).reshape(m, 4)
        arguments = x, weight, indices
        check(arguments, gather_quantized_matmul_small_metal(*arguments, threads=64))


@pytest.mark.parametrize("fused", FUSED)
def test_a_row_depends_on_no_other(fused: bool, emulate):
    """Alone it gives the same bits, and the bits of the expert as a weight by itself."""
    emulate(Options())
    x, weight, indices, up = case(16, 3, 12, 320, mx.bfloat16, fused)
    whole = gather_quantized_matmul_small_metal(x, weight, indices, up)
    for i in range(0, 16, 3):
        one = slice(i, i + 1)
        alone = gather_quantized_matmul_small_metal(x[one], weight, indices[one], up)
        assert same(alone, whole[one])
        expert = indices[i, 1].item()
        gate, second = (
            p and PackedWeight(*(a[expert] for a in p[:3]), 32, 4) for p in (weight, up)
        )
        assert same(quantized_matmul_small_metal(x[one], gate, second), whole[one, 1])


def test_each_expert_in_use_is_read_once(emulate):
    kernels = emulate(Options(traffic=True))
    arguments = case(16, 4, 32, 512, mx.bfloat16, True, group=64)
    check(arguments, gather_quantized_matmul_small_metal(*arguments))
    report = kernels[0].report
    pairs = arguments[2].reshape(-1).tolist()
    used = len(set(pairs))
    for name in ("w", "up_w"):
        assert report.buffers[name].passes == report.buffers[name].requested == used / EXPERTS
    # a product of 8 rows for an expert that 8 rows or fewer chose, of 16 for the others
    counts = [pairs.count(expert) for expert in range(EXPERTS)]
    tiles = sum(-(-count // 8) for count in counts)
    assert report.matrix_flops == 2 * tiles * 8 * 32 * 512 * 2
    assert max(counts) > 8 > min(counts)


def test_few_experts_in_use(emulate):
    kernels = emulate(Options(traffic=True))
    x, weight, _, _ = case(5, 1, 16, 256, mx.bfloat16, group=64)
    indices = mx.array([[2], [7], [2], [2], [7]], mx.uint32)
    check((x, weight, indices), gather_quantized_matmul_small_metal(x, weight, indices))
    assert kernels[0].report.buffers["w"].passes == pytest.approx(2 / EXPERTS)


def test_every_line_runs(emulate):
    kernels = emulate(Options(coverage=True))
    arguments = case(9, 4, 9, 96, mx.bfloat16, True, bits=3)
    gather_quantized_matmul_small_metal(*arguments, threads=32)
    coverage.check(kernels[0].reports, "quantized_matmul_small", "quantized_matmul_small header")


X, WEIGHT, INDICES, UP = case(4, 3, 16, 128, mx.bfloat16, True)
REFUSED = {
    "signed indices": ((X, WEIGHT, INDICES.astype(mx.int32)), {}, "indices are mlx.core.int32"),
    "flat indices": ((X, WEIGHT, INDICES[0]), {}, "indices are"),
    "no indices": ((X, WEIGHT, INDICES[:, :0]), {}, "indices are"),
    "another M": ((X[:3], WEIGHT, INDICES), {}, "x is .* expected .4, K. or .4, 3, K."),
    "another S": ((X[:, None], WEIGHT, INDICES), {}, "x is"),
    "another K": ((X[:, :64], WEIGHT, INDICES), {}, "weight.w is"),
    "one weight": ((X, WEIGHT._replace(w=WEIGHT.w[0]), INDICES), {}, "3 dimensions"),
    "up of fewer": ((X, WEIGHT, INDICES, PackedWeight(*(a[:8] for a in UP[:3]), 32, 4)), {}, "up"),
    "threads": ((X, WEIGHT, INDICES), {"threads": 1024}, "threads=1024"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused(what: str):
    arguments, options, text = REFUSED[what]
    with pytest.raises(ValueError, match=text):
        gather_quantized_matmul_small_metal(*arguments, **options)
