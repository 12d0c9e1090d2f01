from . import Fault, tile_product

TESTS = ("tests/test_kernel_matmul_small.py",)

FAULTS = [
    *tile_product.PRODUCT,
    *tile_product.DENSE,
    Fault("N = w_shape[0];", "N = w_shape[1];"),
    Fault("threadgroup_position_in_grid.x * ROWS", "threadgroup_position_in_grid.x * 8"),
    Fault("col_of(lane) + i % 2, M - 1) * K", "col_of(lane) + i % 2, M) * K"),
    Fault("col_of(lane) + i % 2, M - 1) * K", "col_of(lane), M - 1) * K"),
    Fault("min(8 * (i / 2) + col_of", "min(8 * i + col_of"),
    Fault(
        "= T(total<SIMDS, TILES_M, ROWS>(parts, m, n))", "= T(total<SIMDS, 1, ROWS>(parts, m, n))"
    ),
    Fault("threadgroup_barrier(mem_flags::mem_threadgroup);", ""),
    Fault("barrier(mem_flags::mem_threadgroup)", "barrier(mem_flags::mem_none)"),
    Fault("barrier(mem_flags::mem_threadgroup)", "barrier(mem_flags::mem_device)"),
    Fault("threadgroup_barrier(", "simdgroup_barrier("),
    Fault("i < M * ROWS; i += 32 * SIMDS", "i < M * ROWS - 1; i += 32 * SIMDS"),
    Fault("i < M * ROWS; i += 32 * SIMDS", "i < M * ROWS; i += 64 * SIMDS"),
    Fault("i < M * ROWS; i += 32 * SIMDS", "i < M * ROWS; i += 32"),
    Fault("m = i / ROWS, n = i % ROWS;", "m = i % ROWS, n = i / ROWS;"),
    Fault("if (first + n < N) {", "if (first + n <= N) {"),
    Fault("y[m * N + first + n]", "y[m * ROWS + first + n]"),
]
