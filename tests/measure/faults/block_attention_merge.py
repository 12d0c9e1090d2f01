from . import Fault

TESTS = ("tests/test_kernel_block_attention.py",)

FAULTS = [
    Fault("chunks = partial_shape[0],", "chunks = partial_shape[0] - 1,"),
    Fault("all = partial_shape[1] * partial_shape[2];", "all = partial_shape[2];"),
    Fault("width = partial_shape[3] / 4;", "width = partial_shape[3];"),
    Fault("row = thread_position_in_grid.y", "row = thread_position_in_threadgroup.y"),
    Fault("SINKS ? float(", "!SINKS ? float("),
    Fault("sinks[row / partial_shape[2]]", "sinks[row % partial_shape[1]]"),
    Fault("sinks[row / partial_shape[2]]", "sinks[0]"),
    Fault("* M_LOG2E_F : -MAXFLOAT", ": -MAXFLOAT"),
    Fault("M_LOG2E_F : -MAXFLOAT", "M_LOG2E_F : 0.0f"),
    Fault(
        "float top = sink;",
        "float top = -MAXFLOAT;",
        equivalent="a sum beyond float's range is infinite and the quotient zero, as it should be",
    ),
    Fault("c < chunks; c++) top", "c < chunks - 1; c++) top"),
    Fault("top = max(top, stats[(c * all + row) * 2]);", "top = stats[(c * all + row) * 2];"),
    Fault("top = max(top, stats[(c * all + row) * 2]);", "top = max(top, stats[c * all + row]);"),
    Fault("top = max(top, stats[(c * all + row) * 2]);", ";"),
    Fault("fast::exp2(sink - top) : 0.0f", "1.0f : 0.0f"),
    Fault("fast::exp2(sink - top) : 0.0f", "0.0f : 0.0f"),
    Fault("fast::exp2(sink - top) : 0.0f", "fast::exp2(sink - top) : 1.0f"),
    Fault("partial + thread_position_in_grid.x;", "partial;"),
    Fault("c < chunks; c++) {", "c < chunks - 1; c++) {"),
    Fault("int c = 0; c < chunks; c++) {", "int c = 1; c < chunks; c++) {"),
    Fault("stats[(c * all + row) * 2] - top", "stats[(c * all + row) * 2]"),
    Fault("total += share * ", "total += "),
    Fault("stats[(c * all + row) * 2 + 1]", "stats[row * 2 + 1]"),
    Fault("sum += share * from", "sum += from"),
    Fault("from[size_t(c * all + row) * width]", "from[size_t(row) * width]"),
    Fault("vec<T, 4>(sum / total)", "vec<T, 4>(sum)"),
    Fault(
        "sum += share * from[size_t(c * all + row) * width];",
        "sum = float4(half4(sum + share * from[size_t(c * all + row) * width]));",
    ),
    Fault("y)[size_t(row) * width", "y)[size_t(row % all / 2) * width"),
]
