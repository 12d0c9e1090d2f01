"""The emulator: signatures against MLX's own text, the rewriting, and kernels that run."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_cpu import KernelBuildError, MetalKernel, Options, RewriteError, build, rewrite
from tests.metal_cpu.fixture import MATRIX
from tests.metal_cpu.signature import ATTRIBUTES, TYPE_NAMES, build_signature

pytestmark = pytest.mark.skipif(mx.metal.is_available(), reason="here kernels run on Metal")

ALL_ATTRIBUTES = " ".join(ATTRIBUTES)

# names and arrays of inputs, output dtypes, template, body, atomic
SIGNATURES = {
    "plain": ({"x": mx.zeros((4, 4))}, [mx.float32], [], "y[0] = x[0];", False),
    "scalars": (
        {"a": mx.array(3), "b": mx.array(1.5), "c": mx.array(True)},
        [mx.bfloat16],
        [("T", mx.bfloat16)],
        "a_shape b_ndim",
        False,
    ),
    "small": (
        {"x": mx.zeros((7,)), "w": mx.zeros((8,), mx.uint8)},
        [mx.float16, mx.int64],
        [("N", -3), ("flag", True), ("off", False), ("U", mx.uint32)],
        "x_shape x_strides x_ndim w_strides thread_position_in_grid",
        False,
    ),
    "attributes": ({"x": mx.zeros((4, 4))}, [mx.float32], [], ALL_ATTRIBUTES, False),
    "atomic": ({"x": mx.zeros((4, 4))}, [mx.float32, mx.uint32], [], "grid_size", True),
    "dtypes": (
        {f"x{i}": mx.zeros((9,), dtype) for i, dtype in enumerate(TYPE_NAMES)},
        list(TYPE_NAMES)[:3],
        [],
        "x3_shape",
        False,
    ),
    "empty": ({"x": mx.zeros((0, 3))}, [mx.float32], [], "x_shape[0]", False),
}


def of_mlx(case: str) -> str:
    """The text that the installed MLX makes; without Metal it does so only while exporting."""
    names, dtypes, template, body, atomic = SIGNATURES[case]
    kernel = mx.fast.metal_kernel(
        name=case,
        input_names=list(names),
        output_names=[f"y{i}" for i in range(len(dtypes))],
        source=body,
        header="int twice(int x) { return 2 * x; }\n",
        atomic_outputs=atomic,
    )

    def call(*arrays: mx.array) -> list[mx.array]:
        return kernel(
            inputs=list(arrays),
            template=template or None,
            grid=(8, 1, 1),
            threadgroup=(8, 1, 1),
            output_shapes=[(2,)] * len(dtypes),
            output_dtypes=dtypes,
            verbose=True,
        )

    mx.export_function(os.devnull, call, *names.values())
    return ""


@pytest.fixture(scope="module")
def mlx_texts() -> dict[str, str]:
    """MLX prints with C++ streams, so another process runs `of_mlx` for every case."""
    code = (
        "import tests.test_metal_cpu as t\n"
        "for case in t.SIGNATURES:\n print('##' + case, flush=True); t.of_mlx(case)\n"
    )
    run = [sys.executable, "-c", code]
    root = Path(__file__).parent.parent
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=root)
    parts = done.stdout.split("##")[1:]
    return {p.split("\n")[0]: p.split("```\n")[1] for p in parts}


@pytest.mark.parametrize("case", SIGNATURES)
def test_signature_is_mlx_text(case: str, mlx_texts: dict[str, str]):
    names, dtypes, template, body, atomic = SIGNATURES[case]
    outputs = [f"y{i}" for i in range(len(dtypes))]
    made = build_signature(
        case, body, list(names), list(names.values()), outputs, dtypes, template, atomic
    )
    assert made.text("int twice(int x) { return 2 * x; }\n", body) + "\n" == mlx_texts[case]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("threadgroup float a[4];", "MTL_TG(MTL_T(float), a, MTL_T([4]));"),
        (
            "{ threadgroup T a[D > 1 ? 2 : 1], b; }",
            "{ MTL_TG(MTL_T(T), a, MTL_T([D > 1 ? 2 : 1])); MTL_TG(MTL_T(T), b, MTL_T()); }",
        ),
        (
            "threadgroup vec<T, 4> z[A][B<C, D>::n];",
            "MTL_TG(MTL_T(vec<T, 4>), z, MTL_T([A][B<C, D>::n]));",
        ),
        ("threadgroup int a\n  [4];", "MTL_TG(MTL_T(int), a, MTL_T(\n  [4]));"),
        ("threadgroup alignas(16) half a[4];", "MTL_TG(MTL_T(half), a, MTL_T([4]));"),
        ("T* a [[threadgroup(0)]],", "T* a [[mtl_slot(0)]],"),
        *(
            (same, same)
            for same in (
                "threadgroup float* p = a;",
                "threadgroup float (*p)[4] = &a;",
                "void f(threadgroup T* x, const threadgroup U& y) {}",
                "struct S { threadgroup T* p; void f() const threadgroup {} };",
                '// threadgroup float a[4];\n"threadgroup int a;"',
                "auto p = (threadgroup half*)q;",
                "S() threadgroup : real(0) {}",
            )
        ),
    ],
)
def test_threadgroup_variables_are_rewritten(text: str, wanted: str):
    assert rewrite.rewrite(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "\nthreadgroup float x = 3;",
        "\nthreadgroup float x[2] = {1, 2};",
        "\nthreadgroup float (x)[4];",
        "\nstatic threadgroup float x[4];",
        "\nalignas(64) threadgroup float x[4];",
        "\n#define TILE \\\n threadgroup float x[3];\n",
        "\n#define TG threadgroup\n",
        "\nthreadgroup float x[4]",
    ],
)
def test_threadgroup_variable_that_is_not_understood_is_an_error(text: str):
    with pytest.raises(RewriteError, match="kernel:2"):
        rewrite.rewrite(text)


EXP = """
    uint elem = thread_position_in_grid.x;
    T x = inp[elem_to_loc(elem, inp_shape, inp_strides, inp_ndim)];
    out[elem] = metal::exp(x);
"""


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_strided_input_is_read_in_place(dtype: mx.Dtype, metal_cpu: type[MetalKernel]):
    kernel = metal_cpu("strided", ["inp"], ["out"], EXP, ensure_row_contiguous=False)
    x = mx.random.normal((6, 5, 4)).astype(dtype)[::2].transpose(2, 0, 1)
    (y,) = kernel(
        inputs=[x],
        template=[("T", dtype)],
        grid=(x.size, 1, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[dtype],
    )
    assert y.dtype == dtype
    assert mx.allclose(y, mx.exp(x), rtol=1e-2 if dtype == mx.bfloat16 else 1e-3)
    assert kernel.report.groups == 2 and kernel.report.threads == 60


ROW_SUM = """
    threadgroup float part[32];
    uint row = threadgroup_position_in_grid.y;
    float sum = 0;
    for (uint i = thread_position_in_threadgroup.x; i < N; i += threads_per_threadgroup.x) {
      sum += x[row * N + i];
    }
    sum = simd_sum(sum);
    if (thread_index_in_simdgroup == 0) {
      part[simdgroup_index_in_threadgroup] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup_index_in_threadgroup == 0) {
      uint lane = thread_index_in_simdgroup;
      sum = simd_sum(lane < simdgroups_per_threadgroup ? part[lane] : 0.0f);
      if (lane == 0) {
        y[row] = sum;
      }
    }
"""


@pytest.mark.parametrize("how", MATRIX)
def test_reduction_in_every_order(how: str, metal_cpu: type[MetalKernel]):
    kernel = metal_cpu("row_sum", ["x"], ["y"], ROW_SUM, options=MATRIX[how])
    x = mx.random.normal((3, 200))
    (y,) = kernel(
        inputs=[x],
        template=[("N", 200)],
        grid=(96, 3, 1),
        threadgroup=(96, 1, 1),
        output_shapes=[(3,)],
        output_dtypes=[mx.float32],
    )
    assert mx.allclose(y, x.sum(1), rtol=1e-5, atol=1e-5)
    assert kernel.report.threadgroup_bytes == 128 and kernel.report.barriers == 3


SCATTER = """
    uint i = thread_position_in_grid.x;
    atomic_fetch_add_explicit(&sums[bins[i]], weights[i], memory_order_relaxed);
"""


@pytest.mark.parametrize("how", ["asc", "checked"])
def test_atomic_outputs(how: str, metal_cpu: type[MetalKernel]):
    names = ["bins", "weights"]
    kernel = metal_cpu(
        "scatter", names, ["sums"], SCATTER, atomic_outputs=True, options=MATRIX[how]
    )
    bins, weights = np.arange(100) * 7 % 5, np.linspace(-1, 1, 100, dtype=np.float32)
    (sums,) = kernel(
        inputs=[mx.array(bins), mx.array(weights)],
        grid=(100, 1, 1),
        threadgroup=(50, 1, 1),
        output_shapes=[(5,)],
        output_dtypes=[mx.float32],
        init_value=2,
    )
    wanted = [2 + weights[bins == b].sum() for b in range(5)]
    assert np.allclose(sums, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("bfloat b = bfloat(1); float f = 2; b += f; y[0] = b;", "bad:1"),
        ("\n\nhalf h = 1; bfloat b = bfloat(1); y[0] = h + b;", "bad:3"),
        ("double d = 1; y[0] = d;", "bad:1.*poisoned"),
        ("y[0] = min(1.0f, half(2));", "ambiguous"),
        ("y[0] = nothing;", "nothing"),
    ],
)
def test_what_metal_refuses_does_not_compile(body: str, message: str, metal_cpu: type[MetalKernel]):
    kernel = metal_cpu("bad", ["x"], ["y"], body)
    with pytest.raises(KernelBuildError, match=message):
        one(kernel, 1)


def one(kernel: MetalKernel, n: int, x: mx.array | None = None, **more: object) -> mx.array:
    """Runs a kernel of one input x and one float output y of n elements, one threadgroup."""
    call = {"grid": (n, 1, 1), "threadgroup": (n, 1, 1), "output_shapes": [(n,)]}
    call |= {"output_dtypes": [mx.float32], "inputs": [mx.zeros((n,)) if x is None else x]}
    return kernel(**call | more)[0]


def test_arguments_are_checked_as_by_mlx(metal_cpu: type[MetalKernel]):
    kernel = metal_cpu("id", ["x"], ["y"], "y[thread_position_in_grid.x] = 1;")
    with pytest.raises(ValueError, match="Expected `inputs` to have size 1 but got size 2"):
        one(kernel, 4, inputs=[1, 2])
    with pytest.raises(ValueError, match=r"Thread group size \(2048\) is greater than"):
        one(kernel, 2048)
    with pytest.raises(ValueError, match="at least one output"):
        metal_cpu("none", ["x"], [], "")
    with pytest.raises(ValueError, match="order 'up'"):
        Options(order="up")


def test_without_a_compiler_it_fails_loudly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    build.compiler.cache_clear()
    try:
        with pytest.raises(build.CompilerMissing, match="needs GNU g"):
            build.compiler()
    finally:
        build.compiler.cache_clear()


def test_same_text_is_compiled_once(metal_cpu: type[MetalKernel], monkeypatch: pytest.MonkeyPatch):
    compiled: list[object] = []
    real = build._compile
    monkeypatch.setattr(build, "_compile", lambda *a: (compiled.append(a), real(*a)))
    mark = f"// {os.getpid()} {os.urandom(4).hex()}\n"  # a text nobody has compiled before
    for body, times in ((mark, 2), (mark, 2), (mark + " ", 4)):
        kernel = metal_cpu("once", ["x"], ["y"], body + "y[thread_position_in_grid.x] = 1;")
        one(kernel, 4)
        assert len(compiled) == times  # the object and the library
