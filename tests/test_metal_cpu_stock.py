"""The emulator runs MLX's own kernels, from the installed wheel, and mlx-lm's, and agrees.

This re-validates it at every upgrade of MLX.  References are float32 ops on the same values.
"""

import mlx.core as mx
import pytest
from mlx_lm.models import gated_delta

from tests.metal_cpu import Options, stock_attention, stock_matmul
from tests.metal_cpu.fixture import MATRIX

pytestmark = pytest.mark.skipif(mx.metal.is_available(), reason="here kernels run on Metal")

TRAFFIC = Options(traffic=True)
LIMITS = {mx.float32: 5e-6, mx.float16: 2e-3, mx.bfloat16: 1e-2}


def error(found: mx.array, wanted: mx.array) -> float:
    """Largest difference, relative to the largest value."""
    return float(mx.abs(found.astype(mx.float32) - wanted).max() / mx.abs(wanted).max())


def quantised(m: int, n: int, k: int, dtype: mx.Dtype, group: int = 64, bits: int = 4):
    """x, packed w, scales, biases and the product in float32."""
    mx.random.seed(m * 1000 + bits)
    x = mx.random.normal((m, k)).astype(dtype)
    w, scales, biases = mx.quantize(mx.random.normal((n, k)).astype(dtype), group, bits)
    plain = mx.dequantize(w, scales.astype(mx.float32), biases.astype(mx.float32), group, bits)
    return (x, w, scales, biases), x.astype(mx.float32) @ plain.T


MATMULS = [
    (stock_matmul.qmv, 2, mx.bfloat16, 64, 4),
    (stock_matmul.qmv_wide, 5, mx.bfloat16, 64, 4),
    (stock_matmul.qmm_t, 13, mx.bfloat16, 64, 4),
    (stock_matmul.qmm_t, 33, mx.float32, 32, 8),
]


@pytest.mark.parametrize(("call", "m", "dtype", "group", "bits"), MATMULS)
def test_quantised_matmul(call, m, dtype, group, bits):
    arrays, wanted = quantised(m, 64, 512, dtype, group, bits)
    y, _ = call(*arrays, group, bits, Options())
    assert error(y, wanted) < LIMITS[dtype]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "dtype"),
    [(2, mx.float32), (3, mx.bfloat16), (5, mx.float16), (6, mx.float32), (8, mx.bfloat16)],
)
def test_quantised_matmul_of_every_kind(bits: int, dtype: mx.Dtype):
    m = 1 if bits % 2 else 6
    arrays, wanted = quantised(m, 40, 256, dtype, 64, bits)
    for call in (stock_matmul.qmv, stock_matmul.qmv_wide, stock_matmul.qmm_t):
        y, _ = call(*arrays, 64, bits, Options(order="random", seed=m))
        assert error(y, wanted) < LIMITS[dtype], call.__name__


@pytest.mark.parametrize("m", [4, 13])
def test_dense_matmul(m: int):
    mx.random.seed(m)
    x, w = (mx.random.normal((rows, 260)).astype(mx.bfloat16) for rows in (m, 72))
    wanted = x.astype(mx.float32) @ w.astype(mx.float32).T
    for call in (stock_matmul.gemv_wide, stock_matmul.gemm):
        y, report = call(x, w, TRAFFIC)
        assert error(y, wanted) < LIMITS[mx.bfloat16], call.__name__
    assert report.matrix_flops == 2 * 64 * 96 * 288  # whole tiles


def attention(rows: int, length: int, d: int, dtype: mx.Dtype, causal: bool):
    mx.random.seed(rows)
    q = mx.random.normal((1, 8, rows, d)).astype(dtype)
    k, v = (mx.random.normal((1, 2, length, d)).astype(dtype) for _ in range(2))
    plain = [a.astype(mx.float32) for a in (q, k, v)]
    mask = "causal" if causal else None
    wanted = mx.fast.scaled_dot_product_attention(*plain, scale=d**-0.5, mask=mask)
    return (q, k, v), wanted


@pytest.mark.parametrize("causal", [True, False])
def test_attention(causal: bool):
    arrays, wanted = attention(3, 70, 64, mx.bfloat16, causal)
    for found in (
        stock_attention.sdpa_vector(*arrays, 64**-0.5, causal, Options()),
        stock_attention.sdpa_2pass(*arrays, 64**-0.5, causal, 32, Options()),
        stock_attention.steel_attention(*arrays, 64**-0.5, causal, Options()),
    ):
        assert error(found[0], wanted) < LIMITS[mx.bfloat16]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d", "dtype"),
    [(64, mx.float16), (128, mx.bfloat16), (128, mx.float32), (256, mx.bfloat16)],
)
def test_attention_of_every_size(d: int, dtype: mx.Dtype):
    arrays, wanted = attention(16, 90, d, dtype, True)
    order = Options(order="desc")
    y, _ = stock_attention.sdpa_vector(*arrays, d**-0.5, True, order)
    assert error(y, wanted) < LIMITS[dtype]
    if d < 256:  # the tiles of float32 at 256 exceed threadgroup memory
        y, _ = stock_attention.steel_attention(*arrays, d**-0.5, True, order)
        assert error(y, wanted) < LIMITS[dtype]


def recurrence(t: int, dtype: mx.Dtype, vector_gate: bool = False):
    """q, k, v, g, beta, state of 2 value heads, 1 key head, 128 x 32; and the reference."""
    mx.random.seed(t)
    q, k = (mx.random.normal((1, t, 1, 128)).astype(dtype) * 0.1 for _ in range(2))
    v = mx.random.normal((1, t, 2, 32)).astype(dtype)
    g = mx.random.uniform(0.8, 1, (1, t, 2, 128) if vector_gate else (1, t, 2))
    beta = mx.random.uniform(0, 1, (1, t, 2)).astype(dtype)
    state = mx.random.normal((1, 2, 32, 128))
    plain = [a.astype(mx.float32) for a in (q, k, v, g, beta)]
    return (q, k, v, g, beta, state), gated_delta.gated_delta_ops(*plain, state)


def test_mlx_gated_delta_in_chunks_and_its_known_race():
    """The chunk kernel reuses its scratch without a barrier; lockstep alone makes that work."""
    arrays, (y, state) = recurrence(13, mx.float32)
    options = Options(checked=True, allow=frozenset({"race"}))
    found, new, report = stock_attention.gated_delta_chunk(*arrays, options)
    assert error(found, y) < 5e-6 and error(new, state) < 5e-6
    assert {i.file for i in report.issues} == {"gated_delta_update.h"}
    assert report.kinds() == {"race"}


@pytest.mark.parametrize("how", ["asc", "random1", "checked"])
def test_mlx_lm_gated_delta(how: str, emulate, monkeypatch: pytest.MonkeyPatch):
    kernels = emulate(MATRIX[how])
    names = [n for n in vars(gated_delta) if n.startswith("_gated_delta_kernel")]
    makers = {
        "_gated_delta_kernel": gated_delta._make_gated_delta_kernel,
        "_gated_delta_kernel_xtree": gated_delta._make_gated_delta_kernel_xtree,
        "_gated_delta_kernel_packed": gated_delta._make_gated_delta_packed_kernel,
    }
    assert set(makers) <= set(names)
    for name, make in makers.items():
        monkeypatch.setattr(gated_delta, name, make())
    arrays, (wanted, state) = recurrence(5, mx.bfloat16)
    calls = ("kernel", "kernel_xtree", "kernel_unpacked")
    found = [getattr(gated_delta, f"gated_delta_{call}")(*arrays) for call in calls]
    assert len(kernels) == 3 and all(k.reports for k in kernels)
    for y, new in found:
        assert error(y, wanted) < 1e-2 and error(new, state) < 5e-6
        # the three state the same order of additions, so they are equal bit for bit
        assert mx.array_equal(y, found[0][0]) and mx.array_equal(new, found[0][1])


def test_masked_gated_delta_stores_zero_from_every_lane(emulate, monkeypatch: pytest.MonkeyPatch):
    emulate(Options(checked=True, allow=frozenset({"same-address-store"})))
    kernel = gated_delta._make_gated_delta_kernel(has_mask=True, vectorized=True)
    monkeypatch.setattr(gated_delta, "_gated_delta_kernel_vec_masked", kernel)
    arrays, _ = recurrence(3, mx.float32, vector_gate=True)
    mask = mx.array([[True, False, True]])
    wanted, state = gated_delta.gated_delta_ops(*arrays, mask)
    y, new = gated_delta.gated_delta_kernel(*arrays, mask)
    assert error(y * mask[..., None, None], wanted * mask[..., None, None]) < 5e-6
    assert error(new, state) < 5e-6
    assert kernel.report.kinds() == {"same-address-store"}


@pytest.mark.slow
def test_traffic_of_stock_kernels_is_what_their_sources_say():
    arrays, _ = quantised(16, 64, 512, mx.bfloat16)
    flops = 2 * 16 * 64 * 512
    passes = {}
    for call in (stock_matmul.qmv, stock_matmul.qmv_wide, stock_matmul.qmm_t):
        _, report = call(*arrays, 64, 4, TRAFFIC)
        passes[call.__name__] = report.buffers["w"].passes
    assert passes == {"qmv": 16, "qmv_wide": 4, "qmm_t": 1}
    assert report.matrix_flops == 2 * flops  # 32 rows where 16 are wanted
    assert report.buffers["w"].requested == 2
    (q, k, v), _ = attention(4, 128, 64, mx.bfloat16, False)
    _, report = stock_attention.sdpa_vector(q, k, v, 1.0, False, TRAFFIC)
    assert report.buffers["keys"].passes == 16  # 4 query heads per key head, 4 rows
    _, report, _ = stock_attention.sdpa_2pass(q, k, v, 1.0, False, 32, TRAFFIC)
    assert report.buffers["keys"].passes == 1 and report.buffers["keys"].requested == 16
