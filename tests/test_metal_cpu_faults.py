"""Every class of fault, planted in a correct two-stage row sum, is found with its line.

A `// @` in the planted text marks the line that the report must name.
"""

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_cpu import KernelFault, MetalKernel, Options

pytestmark = pytest.mark.skipif(mx.metal.is_available(), reason="here kernels run on Metal")

ROWS, COLUMNS, THREADS = 8, 200, 64
LOAD = "sum += x[row * N + i];"
KEEP = "part[simd] = sum;"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
LAST = "sum = simd_sum(lane < 2 ? part[lane] : 0.0f);"
STORE = "if (lane == 0) { y[row] = sum; }"
ROW_SUM = f"""
    threadgroup float part[32];
    uint row = threadgroup_position_in_grid.y;
    uint thread_in = thread_position_in_threadgroup.x;
    uint lane = thread_index_in_simdgroup, simd = simdgroup_index_in_threadgroup;
    float sum = 0;
    for (uint i = thread_in; i < N; i += 64) {{
      {LOAD}
    }}
    sum = simd_sum(sum);
    if (lane == 0) {{
      {KEEP}
    }}
    {BARRIER}
    if (simd == 0) {{
      {LAST}
      {STORE}
    }}
"""

# what replaces what, and the kinds of fault of which one must name the marked line
PLANTED = {
    "no barrier": (BARRIER, "", LAST + " // @", {"uninitialised-read", "race"}),
    "fence of nothing": (BARRIER, BARRIER.replace("threadgroup)", "none)"), LAST + " // @", "race"),
    "fence of device memory": (
        BARRIER,
        BARRIER.replace("threadgroup)", "device)"),
        LAST + " // @",
        "race",
    ),
    "simdgroup barrier": (
        BARRIER,
        "simd" + BARRIER[6:],
        LAST + " // @",
        {"uninitialised-read", "race"},
    ),
    "read past the end": (LOAD, "sum += x[row * N + i + 1]; // @", None, "out-of-bounds"),
    "read before the start": (LOAD, "sum += x[int(row * N + i) - 1]; // @", None, "out-of-bounds"),
    "write past the end": (
        STORE,
        "if (lane == 0) { y[row + 1] = sum; } // @",
        None,
        "out-of-bounds",
    ),
    "write to an input": (
        STORE,
        STORE + "\nconst_cast<device float*>(x)[row] = 1; // @",
        None,
        "write-to-input",
    ),
    "barrier in a branch": (BARRIER, f"if (simd == 0) {BARRIER} // @", None, "barrier-divergence"),
    "left before the barrier": (
        BARRIER,
        f"if (simd == 1) return;\n{BARRIER} // @",
        None,
        "barrier-divergence",
    ),
    "two barriers for one": (
        BARRIER,
        f"if (simd == 0) {{\n{BARRIER} // @\n}} else {{\n{BARRIER}\n}}",
        None,
        "barrier-divergence",
    ),
    "simd_sum in a branch": (
        LAST,
        "if (lane < 2) {\nsum = simd_sum(part[lane]); // @\n}",
        None,
        "simd-divergence",
    ),
    "matrix product in a branch": (
        LAST,
        "simdgroup_float8x8 m(1.0f);\nif (lane < 8) { m = m * m; } // @\n" + LAST,
        None,
        "simd-divergence",
    ),
    "shuffle from an inactive lane": (
        LAST,
        "sum = part[lane % 2];\nif (lane < 4) {\nsum += simd_shuffle_down(sum, 4); // @\n}",
        None,
        "inactive-lane",
    ),
    "threadgroup element never written": (
        LAST,
        "sum = simd_sum(lane < 3 ? part[lane] : 0.0f); // @",
        None,
        "uninitialised-read",
    ),
    "output read before it is written": (
        STORE,
        "if (lane == 0) { y[row] += sum; } // @",
        None,
        "uninitialised-read",
    ),
    "output never written": (
        STORE,
        "if (lane == 0 && row > 0) { y[row] = sum; }",
        None,
        "unwritten",
    ),
    "threadgroup array overrun": (KEEP, "part[simd + 32] = sum; // @", None, "trap"),
    "threadgroup array overrun by pointer": (
        KEEP,
        "threadgroup float* p = part + 32 + simd;\n*p = sum; // @\n" + KEEP,
        None,
        "out-of-bounds",
    ),
    "local array overrun": (
        LOAD,
        "float t[4] = {1, 2, 3, 4}; sum += t[i & 7]; // @",
        None,
        "trap",
    ),
    "endless loop": (
        STORE,
        "for (uint k = 0; k < N; sum += part[k & 1]) {} // @",
        None,
        "timeout",
    ),
    "division by zero": (LOAD, "sum += float(N / (i & 1)); // @", None, "trap"),
    "two threadgroups, one address": (
        STORE,
        "if (lane == 0) { y[row / 2] = sum; } // @",
        None,
        "race",
    ),
    "two lanes, one address": (STORE, "y[row] = sum; // @", None, "same-address-store"),
    "read and write of device memory without a fence": (
        BARRIER,
        "device float* z = y + row;\nif (thread_in == 33) { *z = sum; }\n"
        + BARRIER
        + "\nif (thread_in == 0) { part[3] = *z; } // @",
        None,
        "race",
    ),
    "write after read": (
        STORE,
        STORE + "\n}\nif (simd == 1) {\nfloat t = part[1]; part[0] = t; // @",
        None,
        "race",
    ),
    "atomic and plain": (
        BARRIER,
        "device atomic<float>* a = (device atomic<float>*)(y + row);\n"
        "if (thread_in == 40) { atomic_store_explicit(a, 1.0f, memory_order_relaxed); }\n"
        + BARRIER,
        STORE + " // @",
        "race",
    ),
    "too much threadgroup memory": (
        KEEP,
        "threadgroup float more[8192];\nmore[0] = 1;\n" + KEEP,
        None,
        "threadgroup-limit",
    ),
    "misaligned vector": (
        LOAD,
        LOAD + "\nfloat4 v = *(const device float4*)(x + i); // @\nsum += v.x - x[i];",
        None,
        "misaligned",
    ),
    "too large a local array": (
        LOAD,
        "volatile char big[400000]; big[i] = 1; sum += big[i];",
        None,
        "trap",
    ),
}


def row_sum(body: str, options: Options) -> tuple[mx.array, MetalKernel]:
    kernel = MetalKernel("row_sum", ["x"], ["y"], body, options=options)
    x = mx.array(np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS) / 100)
    (y,) = kernel(
        inputs=[x],
        template=[("N", COLUMNS)],
        grid=(THREADS, ROWS, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(ROWS,)],
        output_dtypes=[mx.float32],
    )
    assert mx.allclose(y, x.sum(1), rtol=1e-5)
    return y, kernel


def plant(name: str) -> tuple[str, int | None]:
    """The faulty text and the number of the marked line."""
    old, new, mark, _ = PLANTED[name]
    assert ROW_SUM.count(old) == 1
    body = ROW_SUM.replace(old, new)
    if mark is not None:
        body = body.replace(mark.removesuffix(" // @"), mark)
    lines = [i for i, text in enumerate(body.split("\n"), 1) if "// @" in text]
    return body, lines[0] if lines else None


@pytest.mark.parametrize("order", ["asc", "desc", "random"])
def test_the_correct_kernel_has_no_faults(order: str):
    _, kernel = row_sum(ROW_SUM, Options(checked=True, order=order, seed=5))
    assert kernel.report.issues == ()


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found_with_its_line(name: str):
    body, line = plant(name)
    kinds = PLANTED[name][3]
    kinds = {kinds} if isinstance(kinds, str) else kinds
    with pytest.raises(KernelFault) as fault:
        row_sum(body, Options(checked=True, timeout=1.0))
    found = {i.kind for i in fault.value.report.issues}
    assert kinds <= found, fault.value
    if line is not None:
        lines = {i.line for i in fault.value.report.issues if i.kind in kinds}
        assert line in lines, f"{body.splitlines()[line - 1]!r} is line {line}, not: {fault.value}"


def test_message_names_element_and_both_lanes():
    with pytest.raises(KernelFault) as fault:
        row_sum(plant("read past the end")[0], Options(checked=True))
    assert "row_sum:8: out-of-bounds: read of x[1600] (4 B) by lane 7 of threadgroup 7" in str(
        fault.value
    )
    with pytest.raises(KernelFault) as fault:
        row_sum(plant("simdgroup barrier")[0], Options(checked=True))
    assert "byte 4 of threadgroup part (4 B) by lane 1 of threadgroup 0" in str(fault.value)
    assert "access by lane 1 of threadgroup 0 at line 16" in str(fault.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("threadgroup array overrun", "trap"),
        ("local array overrun", "trap"),
        ("endless loop", "timeout"),
        ("division by zero", "trap"),
        ("write past the end", "red-zone"),
        ("write to an input", "write-to-input"),
        ("barrier in a branch", "barrier-divergence"),
        ("simd_sum in a branch", "simd-divergence"),
        ("shuffle from an inactive lane", "inactive-lane"),
        ("too much threadgroup memory", "threadgroup-limit"),
    ],
)
def test_fast_build_finds_it_too(name: str, kind: str):
    with pytest.raises(KernelFault) as fault:
        row_sum(plant(name)[0], Options(timeout=1.0))
    assert kind in fault.value.report.kinds()


def test_missing_barrier_is_a_wrong_result_in_some_order():
    body, _ = plant("no barrier")
    wrong = 0
    for order in ("asc", "desc", "random"):
        try:
            row_sum(body, Options(order=order))
        except AssertionError:
            wrong += 1
    assert wrong >= 1


def test_uninitialised_local_has_a_value_nobody_expects():
    kernel = MetalKernel(
        "local",
        ["x"],
        ["y"],
        "float t[2]; t[0] = x[0]; y[0] = t[int(x[0])];",
        options=Options(checked=True),
    )
    (y,) = kernel(
        inputs=[mx.ones(8)],
        grid=(1, 1, 1),
        threadgroup=(1, 1, 1),
        output_shapes=[(1,)],
        output_dtypes=[mx.float32],
    )
    assert abs(y.item()) > 1e30


def test_small_stores_are_told_apart():
    """Two lanes write the halves of one word: no race, whatever the size of a memory cell."""
    body = "uint i = thread_position_in_grid.x; y[i] = half(x[i]); "
    kernel = MetalKernel("halves", ["x"], ["y"], body, options=Options(checked=True))
    (y,) = kernel(
        inputs=[mx.arange(9).astype(mx.float32)],
        grid=(9, 1, 1),
        threadgroup=(4, 1, 1),
        output_shapes=[(9,)],
        output_dtypes=[mx.float16],
    )
    assert y.tolist() == list(range(9))


def test_allowed_kinds_do_not_raise():
    allow = frozenset({"same-address-store"})
    _, kernel = row_sum(plant("two lanes, one address")[0], Options(checked=True, allow=allow))
    assert kernel.report.kinds() == allow
