from . import Fault, packed, tile_product

TESTS = (
    "tests/test_kernel_gather_quantized_matmul_small.py",  # first, as it has fewer
    "tests/test_kernel_quantized_matmul_small.py",
)
FIRST_BARRIER = "  threadgroup_barrier(mem_flags::mem_threadgroup);\n  above"
LAST_BARRIER = "\nthreadgroup_barrier(mem_flags::mem_threadgroup);\nfor"

FAULTS = [
    *packed.FAULTS,
    *tile_product.PACKED,
    *tile_product.PRODUCT,
    Fault("!FEWER || 8 * i < M", "8 * i + 8 < M"),
    Fault("up, first + row, at);\n  }\n  for", "weight, first + row, at);\n  }\n  for"),
    # gathering
    Fault("uint(p + lane < self && indices", "uint(p + lane <= self && indices"),
    Fault("uint(p + lane < self && indices", "uint(indices"),
    Fault("here = p + lane < P && indices", "here = indices"),
    Fault("uint p = self; p < P", "uint p = 0; p < P"),
    Fault("earlier % MOST == 0", "earlier == 0"),
    Fault("&& found < MOST; p += 32", "; p += 32", equivalent="it only stops the search early"),
    Fault("here && at < MOST)", "here)"),
    Fault("simd_prefix_exclusive_sum", "simd_prefix_inclusive_sum"),
    Fault("found += simd_sum(here);", "found += here;"),
    Fault("return min(found, MOST);", "return found;"),
    Fault("self, lane, simd == 0);", "self, lane, true);"),
    Fault(FIRST_BARRIER, "  above"),
    Fault(FIRST_BARRIER, "  threadgroup_barrier(mem_flags::mem_device);\n  above"),
    Fault(FIRST_BARRIER, "  simdgroup_barrier(mem_flags::mem_threadgroup);\n  above"),
    Fault("above = indices[self] * N;", "above = indices[self];"),
    Fault("N = w_shape[GATHER];", "N = w_shape[0];"),
    Fault("pairs[m] * x_shape[0] / indices_shape[0]", "pairs[m]"),
    # the rest
    Fault("w, scales, biases, above + N, K", "w, scales, biases, N, K"),
    Fault("up_w, up_scales, up_biases, above", "up_w, up_scales, biases, above"),
    Fault("threadgroup_position_in_grid.x * ROWS", "threadgroup_position_in_grid.x * WIDTH"),
    Fault("col_of(lane) + i % 2, M - 1)", "col_of(lane) + i % 2, M)"),
    Fault("col_of(lane) + i % 2, M - 1)", "col_of(lane), M - 1)"),
    Fault("= total<SIMDS, TILES_M, WIDTH>(parts, m, n);", "= total<SIMDS, 1, WIDTH>(parts, m, n);"),
    Fault(LAST_BARRIER, "\nfor"),
    Fault(LAST_BARRIER, "\nthreadgroup_barrier(mem_flags::mem_none);\nfor"),
    Fault("i < M * ROWS; i += 32 * SIMDS", "i < M * ROWS - 1; i += 32 * SIMDS"),
    Fault("i < M * ROWS; i += 32 * SIMDS", "i < M * ROWS; i += 32"),
    Fault("(parts, m, ROWS + n)", "(parts, m, n)"),
    Fault("if (first + n < N) {", "if (first + n <= N) {"),
    Fault("(GATHER ? pairs[m] : m) * N", "m * N"),
    Fault("(1 + exp(-value))", "(1 + exp(value))"),
]
