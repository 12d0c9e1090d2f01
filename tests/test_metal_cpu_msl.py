"""Each feature of the Metal language that kernels use, against numpy or a plain formula."""

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_cpu import MetalKernel, Options

pytestmark = pytest.mark.skipif(mx.metal.is_available(), reason="here kernels run on Metal")

LANES = np.arange(32)


def lanes(body: str, *inputs: mx.array, out: int = 1, threads: int = 32, **more: object):
    """Runs `body` with `lane`, and returns y [out, threads] float32; inputs are a, b, c."""
    names = ["a", "b", "c"][: len(inputs)] or ["a"]
    source = f"uint lane = thread_position_in_grid.x; const uint n = {threads};\n{body}"
    kernel = MetalKernel("msl", names, ["y"], source, **more)
    (y,) = kernel(
        inputs=list(inputs) or [mx.zeros(1)],
        grid=(threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(out, threads)],
        output_dtypes=[mx.float32],
    )
    return np.array(y)


SIMD = {
    "simd_sum(v)": [496] * 32,
    "simd_max(v)": [31] * 32,
    "simd_min(v + 3)": [3] * 32,
    "simd_product(v < 4 ? v + 1 : 1.0f)": [24] * 32,
    "simd_and(lane | 4u)": [4] * 32,
    "simd_or(lane)": [31] * 32,
    "simd_xor(lane | 32u)": [0] * 32,
    "simd_prefix_inclusive_sum(v)": np.cumsum(LANES),
    "simd_prefix_exclusive_sum(v)": np.cumsum(LANES) - LANES,
    "simd_prefix_exclusive_sum(int(lane) - 16)": np.cumsum(LANES - 16) - (LANES - 16),
    "simd_prefix_inclusive_product(v < 3 ? v + 1 : 1.0f)": [1, 2] + [6] * 30,
    "simd_prefix_exclusive_product(v < 3 ? v + 1 : 1.0f)": [1, 1, 2] + [6] * 29,
    "simd_shuffle(v, ushort(31 - lane))": 31 - LANES,
    "simd_broadcast(v, 5)": [5] * 32,
    "simd_broadcast_first(v + 1)": [1] * 32,
    "simd_shuffle_xor(v, 5)": LANES ^ 5,
    "simd_shuffle_down(v, 3)": [*range(3, 32), 29, 30, 31],
    "simd_shuffle_up(v, 3)": [0, 1, 2, *range(29)],
    "simd_shuffle_and_fill_down(v, -1.0f, 3)": [*range(3, 32), -1, -1, -1],
    "simd_shuffle_and_fill_up(v, -1.0f, 3)": [-1, -1, -1, *range(29)],
    "simd_shuffle_rotate_down(v, 3)": (LANES + 3) % 32,
    "simd_shuffle_rotate_up(v, 3)": (LANES - 3) % 32,
    "quad_sum(v)": LANES // 4 * 16 + 6,
    "quad_shuffle_xor(v, 1)": LANES ^ 1,
    "quad_broadcast(v, 2)": LANES // 4 * 4 + 2,
    "quad_shuffle_down(v, 1)": np.where(LANES % 4 == 3, LANES, LANES + 1),
    "float(simd_any(lane == 7))": [1] * 32,
    "float(simd_all(lane < 31))": [0] * 32,
    "float(ulong(simd_ballot(lane < 3)))": [7] * 32,
    "float(simd_is_first())": [1] + [0] * 31,
    "simd_sum(half(1))": [32] * 32,
    "float(simd_sum(bfloat(2)))": [64] * 32,
    "simd_sum(float2(v, 1)).y": [32] * 32,
}


def test_simd_functions():
    body = "float v = lane;\n" + "\n".join(
        f"y[{i} * n + lane] = {text};" for i, text in enumerate(SIMD)
    )
    found = lanes(body, out=len(SIMD))
    for row, (text, wanted) in zip(found, SIMD.items(), strict=True):
        assert np.array_equal(row, np.array(wanted, np.float32)), text


def test_simd_sum_adds_in_the_order_of_the_ascending_butterfly():
    x = np.random.default_rng(0).normal(size=32).astype(np.float32)
    wanted = x
    for d in (1, 2, 4, 8, 16):
        wanted = wanted + wanted[LANES ^ d]
    assert np.array_equal(lanes("y[lane] = simd_sum(a[lane]);", mx.array(x))[0], wanted)


VECTORS = {
    "v.x + 10 * v.w": 41,
    "v.zw[1]": 4,
    "float4(v.wzyx).x": 4,
    "(v + v).z": 6,
    "(2.0f * v - 1).y": 3,
    "dot(v, float4(1))": 10,
    "length(float2(3, 4))": 5,
    "float4(v.xy, 7, 8).z": 7,
    "float4(1, v.yz, 9).w": 9,
    "float(all(v > 0.5f))": 1,
    "float(any(v > float4(4)))": 0,
    "select(v, float4(0), v < 3).x": 0,
    "float(as_type<uint>(1.0f))": 0x3F800000,
    "float(as_type<half2>(as_type<uint>(half2(3, 5))).y)": 5,
    "float(int4(v * 1.5f).y)": 3,
    "float((uint4(7) & uint4(1, 2, 3, 4)).z)": 3,
    "clamp(v, 2.0f, 3.0f).w": 3,
    "max(v, float4(2.5f)).x": 2.5,
    "float(sizeof(float3) + sizeof(packed_float3) + sizeof(half4) + sizeof(bfloat2))": 40,
    "float(vec<float, 8>(3)[7])": 3,
    "fract(2.75f)": 0.75,
    "rsqrt(16.0f)": 0.25,
    "float(popcount(255u) + clz(1u) + ctz(8u))": 42,
    "float(extract_bits(0xf0u, 4, 4))": 15,
    "float(metal::min(3, 2) + metal::abs(-4))": 6,
    "fast::exp2(3.0f) + precise::log2(8.0f)": 11,
    "1 / 3": 0,
    "float(numeric_limits<half>::max())": 65504,
    "float(half(2049.0f))": 2048,
    "float(bfloat(257.0f))": 256,
    "float(bfloat(1) + bfloat(0.00390625f))": 1,
    "float(half(0.1) * half(3))": float(np.float16(0.1) * np.float16(3)),
    "1e300 > 1e30 ? 1 : 0": 1,
    "float(0.1 == 0.1f)": 1,
    "float(is_same_v<decltype(half(1) + 1.0h), half>)": 1,
    "float(is_same_v<decltype(bfloat(1) * 2), bfloat>)": 1,
    "float(is_same_v<decltype(bfloat(1) * 2.0f), float>)": 1,
    "fma(2.0f, 3.0f, 4.0f)": 10,
    "float(ceildiv(10, 4))": 3,
}


def test_vectors_scalars_and_math():
    body = "float4 v = float4(1, 2, 3, 4);\nif (lane == 0) {\n" + "\n".join(
        f"y[{i} * n] = {text};" for i, text in enumerate(VECTORS)
    )
    found = lanes(body + "\n}", out=len(VECTORS), threads=1)
    for value, (text, wanted) in zip(found[:, 0], VECTORS.items(), strict=True):
        assert value == np.float32(wanted), text


def test_swizzles_are_assigned_in_place():
    body = "float4 v = float4(1, 2, 3, 4), w = v * 10;\nv.zw = w.xy; v.x += 5;\n"
    body += "v.yz = v.zy;\n" + "".join(f"y[{i}] = v[{i}];" for i in range(4))
    assert lanes(body, out=4, threads=1)[:, 0].tolist() == [6, 10, 2, 20]


def matrices(kind: str) -> str:
    return f"""
        simdgroup_matrix<{kind}, 8, 8> p, q;
        simdgroup_load(p, a, 8);
        simdgroup_load(q, b, 8, ulong2(0, 0), true);
        simdgroup_float8x8 r = make_filled_simdgroup_matrix<float, 8, 8>(0.5f);
        simdgroup_multiply_accumulate(r, p, q, r);
        simdgroup_store(r, y, 8);
        simdgroup_multiply(r, simdgroup_float8x8(2), r);
        simdgroup_store(r, y + 64, 8, ulong2(0, 0), true);
        uint row = (lane / 4 & 4) + lane / 2 % 4, col = (lane / 4 & 2) * 2 + lane % 2 * 2;
        y[128 + row * 8 + col] = r.thread_elements()[0];
        y[128 + row * 8 + col + 1] = r.thread_elements().y;
    """


@pytest.mark.parametrize(
    ("kind", "dtype"), [("float", mx.float32), ("half", mx.float16), ("bfloat", mx.bfloat16)]
)
def test_matrices(kind: str, dtype: mx.Dtype):
    mx.random.seed(1)
    a, b = (mx.random.normal((8, 8)).astype(dtype) for _ in range(2))
    found = lanes(matrices(kind), a, b, out=6).reshape(3, 8, 8)
    wanted = np.array(a.astype(mx.float32) @ b.astype(mx.float32).T) + 0.5
    assert np.allclose(found[0], wanted, atol=1e-5)
    assert np.allclose(found[1].T, 2 * wanted, atol=1e-5)
    assert np.allclose(found[2], 2 * wanted, atol=1e-5)


ATOMICS = """
    threadgroup atomic_int low;
    threadgroup atomic_uint count;
    if (lane == 0) {
      atomic_store_explicit(&low, 100, memory_order_relaxed);
      atomic_store_explicit(&count, 0u, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_fetch_min_explicit(&low, int(lane) - 5, memory_order_relaxed);
    uint old = atomic_fetch_add_explicit(&count, 2u, memory_order_relaxed);
    uint expected = 1;
    atomic_compare_exchange_weak_explicit(
        &count, &expected, 9u, memory_order_relaxed, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[lane] = atomic_load_explicit(&low, memory_order_relaxed);
    y[n + lane] = atomic_load_explicit(&count, memory_order_relaxed);
    y[2 * n + lane] = old % 2;
"""


def test_atomics_of_threadgroup_memory():
    found = lanes(ATOMICS, out=3, options=Options(checked=True, order="random"))
    assert found[:, 0].tolist() == [-5, 64, 0] and (found == found[:, :1]).all()


IDENTITY = """
    uint3 p = thread_position_in_grid;
    uint at = (p.z * 5 + p.y) * 7 + p.x;
    out[at * 8 + 0] = thread_index_in_threadgroup;
    out[at * 8 + 1] = threads_per_threadgroup.x * 10 + threads_per_threadgroup.y;
    out[at * 8 + 2] = threadgroup_position_in_grid.x * 10 + threadgroup_position_in_grid.y;
    out[at * 8 + 3] = simdgroups_per_threadgroup * 10 + dispatch_simdgroups_per_threadgroup;
    out[at * 8 + 4] = threadgroups_per_grid.x * 10 + threadgroups_per_grid.y;
    out[at * 8 + 5] = threads_per_grid.x * 10 + threads_per_grid.z;
    out[at * 8 + 6] = thread_index_in_simdgroup + 100 * simdgroup_index_in_threadgroup;
    out[at * 8 + 7] = dispatch_threads_per_threadgroup.x + thread_position_in_threadgroup.y;
"""


def test_identity_of_threads_at_uneven_edges():
    """Grid 7 x 5 x 2 in threadgroups of 4 x 3 x 9, which are clamped to 4 x 3 x 2."""
    kernel = MetalKernel("identity", ["x"], ["out"], IDENTITY)
    (out,) = kernel(
        inputs=[mx.zeros(1)],
        grid=(7, 5, 2),
        threadgroup=(4, 3, 9),
        output_shapes=[(2, 5, 7, 8)],
        output_dtypes=[mx.uint32],
    )
    for (z, y, x), found in zip(np.ndindex(2, 5, 7), np.array(out).reshape(-1, 8), strict=True):
        width, height = min(4, 7 - x // 4 * 4), min(3, 5 - y // 3 * 3)
        index = (z * height + y % 3) * width + x % 4
        assert found.tolist() == [
            index,
            width * 10 + height,
            x // 4 * 10 + y // 3,
            11,
            22,
            72,
            index,
            4 + y % 3,
        ]


def test_outputs_start_as_nan_and_every_type_passes():
    kernel = MetalKernel("fill", ["x"], ["out"], "out[thread_position_in_grid.x * 2] = 1;")
    for dtype in (mx.float32, mx.bfloat16, mx.float16, mx.int32, mx.uint8, mx.int64, mx.bool_):
        (out,) = kernel(
            inputs=[3],
            grid=(2, 1, 1),
            threadgroup=(2, 1, 1),
            output_shapes=[(4,)],
            output_dtypes=[dtype],
        )
        assert out.dtype == dtype and out[0].item() == 1
        untouched = out[1].astype(mx.float32).item()
        assert untouched != untouched or untouched in {-1, 255, True}


def test_divergent_simd_sum_adds_the_lanes_that_are_there():
    body = "if (lane < 4) { y[lane] = simd_sum(1.0f); } else { y[lane] = simd_sum(2.0f); }"
    found = lanes(body.replace("else", "\nelse"), options=Options(allow={"simd-divergence"}))
    assert found[0].tolist() == [4] * 4 + [56] * 28


HEADER = """
    template <typename T, int N>
    struct Tile {
      T v[N];
      METAL_FUNC T sum() const thread {
        T s = 0;
        MLX_MTL_PRAGMA_UNROLL
        for (int i = 0; i < N; i++) s += v[i];
        return s;
      }
    };
    constant constexpr float table[3] = {1.0, 2.5, 4};
    template <typename T>
    void fill(threadgroup T* to, const device T* from, uint lane) {
      to[lane] = from[lane];
    }
"""


@pytest.mark.parametrize("checked", [False, True])
def test_templates_constant_tables_and_pointers_to_threadgroup_memory(checked: bool):
    body = (
        """
        threadgroup T part[2][16], extra;
        fill(&part[0][0], a, lane);
        if (lane == 3) { extra = T(7); }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        Tile<T, 2> t = {{part[1][15 - lane % 16], extra}};
        y[lane] = t.sum() + table[lane % 3];
    """.replace("T(7)", "float(7)")
        .replace("T ", "float ")
        .replace("<T", "<float")
    )
    x = mx.arange(32).astype(mx.float32)
    found = lanes(body, x, header=HEADER, options=Options(checked=checked))
    wanted = 31 - LANES % 16 + 7 + np.array([1, 2.5, 4])[LANES % 3]
    assert found[0].tolist() == wanted.tolist()
