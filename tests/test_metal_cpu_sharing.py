"""Correct ways to share memory raise nothing, and every barrier in them is needed."""

import mlx.core as mx
import pytest

from tests.metal_cpu import KernelFault, MetalKernel, Options

pytestmark = pytest.mark.skipif(mx.metal.is_available(), reason="here kernels run on Metal")

# Correct ways to share memory, which must raise nothing; and the line without which each is wrong.
SHARING = {
    "scratch of a simdgroup": (
        """
        threadgroup float s[64];
        for (int k = 0; k < 3; k++) {
          s[i] = x[i] + k;
          simdgroup_barrier(mem_flags::mem_threadgroup);
          y[i] = s[i ^ 1];
          simdgroup_barrier(mem_flags::mem_threadgroup);  // needed
        }
        """,
        "race",
    ),
    "two buffers in turn": (
        """
        threadgroup float s[2][64];
        s[0][i] = x[i];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int k = 0; k < 4; k++) {
          s[(k + 1) & 1][i] = s[k & 1][63 - i] + 1;
          threadgroup_barrier(mem_flags::mem_threadgroup);  // needed
        }
        y[i] = s[0][i];
        """,
        "race",
    ),
    "device memory within a threadgroup": (
        """
        y[i] = x[i];
        threadgroup_barrier(mem_flags::mem_device);  // needed
        float other = y[63 - i];
        threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
        y[i] = other;
        """,
        "race",
    ),
    "read by all, then written": (
        """
        threadgroup float s[2];
        if (i < 2) { s[i] = x[i]; }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float sum = s[0] + s[1];
        threadgroup_barrier(mem_flags::mem_threadgroup);  // needed
        if (i == 33) { s[0] = 5; }
        y[i] = sum;
        """,
        "race",
    ),
    "a simdgroup that has left": (
        """
        y[i] = 0;
        if (i >= 32) {
          return;
        }
        y[i] = simd_sum(x[i]);
        """,
        None,
    ),
}


@pytest.mark.parametrize("order", ["asc", "desc", "random"])
@pytest.mark.parametrize("how", SHARING)
def test_correct_sharing_raises_nothing_and_each_barrier_is_needed(how: str, order: str):
    def share(body: str) -> None:
        kernel = MetalKernel("share", ["x"], ["y"], body, options=options)
        kernel(
            inputs=[mx.arange(64).astype(mx.float32)],
            grid=(64, 1, 1),
            threadgroup=(64, 1, 1),
            output_shapes=[(64,)],
            output_dtypes=[mx.float32],
        )

    options = Options(checked=True, order=order, seed=3)
    body, kind = SHARING[how]
    body = "uint i = thread_position_in_grid.x;" + body
    share(body)
    lines = [text for text in body.split("\n") if "// needed" in text]
    for line in lines:
        with pytest.raises(KernelFault) as fault:
            share(body.replace(line, ""))
        assert kind in fault.value.report.kinds()


def test_bytes_that_were_never_written_are_counted():
    for dtype, size in ((mx.float32, 4), (mx.uint8, 1)):
        kernel = MetalKernel("part", ["x"], ["y"], "y[2] = x[0];", options=Options(checked=True))
        with pytest.raises(KernelFault, match=rf"{2 * size} bytes of y .* first at y\[0\]"):
            kernel(
                inputs=[mx.ones(9)],
                grid=(1, 1, 1),
                threadgroup=(1, 1, 1),
                output_shapes=[(3,)],
                output_dtypes=[dtype],
            )
