"""What the emulator counts: traffic, threadgroup memory, matrix flops, lines."""

from pathlib import Path

import mlx.core as mx
import pytest

from tests.metal_cpu import KernelFault, MetalKernel, Options
from tests.metal_cpu import coverage as lines

pytestmark = pytest.mark.skipif(mx.metal.is_available(), reason="here kernels run on Metal")

TRAFFIC = Options(traffic=True)


def run(body: str, n: int, options: Options = TRAFFIC, size: int = 32, **more: object):
    """One float input x of 4096 elements, one output y of n; n threads by `size`."""
    kernel = MetalKernel("count", ["x"], ["y"], body, options=options, **more)
    kernel(
        inputs=[mx.arange(4096).astype(mx.float32)],
        grid=(n, 1, 1),
        threadgroup=(size, 1, 1),
        output_shapes=[(n,)],
        output_dtypes=[mx.float32],
    )
    return kernel.report


# how x is read by thread i; bytes asked by lanes, different bytes, lines per request, per
# threadgroup, in all.  128 threads in 4 threadgroups of one simdgroup.
READS = {
    "one after another": ("x[i]", 512, 512, 8, 8, 8),
    "every 16th": ("x[i * 16]", 512, 512, 128, 128, 128),
    "the same by all": ("x[7]", 512, 16, 4, 4, 1),
    "the same by pairs": ("x[i / 2]", 512, 256, 4, 4, 4),
    "twice": ("x[i] + volatile_x[i]", 1024, 1024, 16, 8, 8),
    "over a line's end": ("x[i + 8]", 512, 512, 12, 12, 9),
    "two by each": ("dot(((const device float2*)x)[i], float2(1))", 1024, 1024, 16, 16, 16),
}


@pytest.mark.parametrize("how", READS)
def test_reads_are_counted(how: str):
    expression, *wanted = READS[how]
    body = f"""
        uint i = thread_position_in_grid.x;
        const volatile device float* volatile_x = x;
        y[i] = {expression};
    """
    read = run(body, 128).buffers["x"].read
    found = (read.lane_bytes, read.simd_bytes, read.request_lines, read.group_lines)
    assert (*found, read.grid_lines) == tuple(wanted)


def test_writes_are_counted_apart_and_passes_are_ratios():
    body = "uint i = thread_position_in_grid.x; for (int k = 0; k < 4096; k += 32) y[i] = x[k];"
    report = run(body, 64)
    x, y = report.buffers["x"], report.buffers["y"]
    assert x.passes == 2 * 128 / 256 and y.passes == 0
    assert y.write.lane_bytes == 64 * 128 * 4 and y.write.grid_lines == 4
    assert x.read.coalescing == 4 / 64 and y.write.coalescing == 1
    assert "read x1.00 by threadgroups" in report.text()


@pytest.mark.parametrize(("stride", "turns"), [(1, 1), (2, 2), (32, 32), (33, 1)])
def test_bank_conflicts(stride: int, turns: int):
    body = f"""
        threadgroup float t[33 * 32];
        uint i = thread_position_in_grid.x;
        t[i * {stride}] = x[i];
        y[i] = 1;
    """
    report = run(body, 32)
    assert report.bank_conflicts == turns
    assert report.threadgroup_bytes == 33 * 32 * 4
    assert (report.threadgroup_written, report.threadgroup_read) == (128, 0)


def test_matrix_flops_barriers_and_threads():
    body = """
        simdgroup_float8x8 a, b(2.0f), c = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
        simdgroup_load(a, x, 8);
        for (int k = 0; k < 3; k++) {
          simdgroup_multiply_accumulate(c, a, b, c);
          simdgroup_barrier(mem_flags::mem_none);
          threadgroup_barrier(mem_flags::mem_none);
        }
        y[thread_position_in_grid.x] = c.thread_elements()[0];
    """
    report = run(body, 128, size=64)
    assert report.matrix_flops == 3 * 4 * 1024
    assert (report.barriers, report.simd_barriers, report.collectives) == (6, 12, 12)
    assert (report.groups, report.threads) == (2, 128)


LINES = """uint i = thread_position_in_grid.x;
if (i > 100) {
  y[i] = scaled(x[i]);
} else {
  y[i] = 0;
}
"""
HEADER = """inline float scaled(float v) {
  if (v > 1e6f) {
    return 0;
  }
  return 2 * v;
}
"""


def test_lines_that_never_ran_are_named(tmp_path: Path):
    path = tmp_path / "scale.metal"
    path.write_text(f"// contract\n{HEADER}\n// body\n{LINES}")
    options = Options(coverage=True)
    kernel = MetalKernel("scale", ["x"], ["y"], LINES, HEADER, options=options, files=[path])
    for n, missing in ((64, [2, 3, 4, 6, 12]), (128, [4])):
        kernel(
            inputs=[mx.arange(128).astype(mx.float32)],
            grid=(n, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(n,)],
            output_dtypes=[mx.float32],
        )
        assert lines.gaps(kernel.reports, "scale.metal") == missing
    assert lines.merge(kernel.reports)["scale.metal"][14] == 64 + 101


def test_a_fault_names_the_file_and_line_of_a_metal_file(tmp_path: Path):
    path = tmp_path / "bad.metal"
    path.write_text(
        "// contract\n// body\nuint i = thread_position_in_grid.x;\ny[i] = x[i + 4090];\n"
    )
    body = path.read_text().split("// body\n")[1]
    with pytest.raises(KernelFault, match=r"bad\.metal:4: out-of-bounds: read of x\[4096\]"):
        run(body, 32, files=[path])
