from . import Fault, packed

TESTS = ("tests/test_kernel_quantized_matmul_rows.py",)

FAULTS = [
    *packed.FAULTS,
    # reading
    Fault("min(first + r, N - 1)", "first + r"),
    Fault("min(first + r, N - 1)", "min(first + r, N)"),
    Fault("min(first + r, N - 1)", "min(first, N - 1)"),
    Fault("w, scales, biases, n * blocks + at", "w, scales, biases, n * blocks + at / 2"),
    Fault("up_biases, n * blocks + at", "up_biases, n * (blocks + 1) + at"),
    Fault("fetch<GROUP>(weight[r], w, scales", "fetch<GROUP / 2>(weight[r], w, scales"),
    Fault("weight[ALL - ROWS + r], up_w", "weight[r], up_w"),
    Fault("weight[ALL - ROWS + r], up_w", "weight[ALL - ROWS + r], w"),
    Fault("float(x[2]), float(x[3]))", "float(x[3]), float(x[2]))"),
    # the loop
    Fault("N = w_shape[0]", "N = x_shape[0]"),
    Fault("blocks = K / VALUES;", "blocks = K / VALUES - 1;"),
    Fault("thread_position_in_grid.x / 32 * ROWS", "thread_position_in_grid.x / 32"),
    Fault("sums[r][m] = 0;", "sums[r][m] = 1;"),
    Fault("= fma(xs[m][v], value, sums[r][m]);", "= half(fma(xs[m][v], value, sums[r][m]));"),
    Fault("uint at = lane; at < blocks; at += 32", "uint at = lane; at < blocks - 1; at += 32"),
    Fault("uint at = lane; at < blocks; at += 32", "uint at = lane; at < blocks; at += 64"),
    Fault("uint at = lane; at < blocks; at += 32", "uint at = 0; at < blocks; at += 32"),
    Fault("uint at = lane; at < blocks; at += 32", "uint at = lane; at <= blocks; at += 32"),
    Fault("up_scales, up_biases, n", "up_scales, biases, n"),
    Fault("x + m * K + at * VALUES + j", "x + at * VALUES + j"),
    Fault("x + m * K + at * VALUES + j", "x + m * K + at + j"),
    Fault("x + m * K + at * VALUES + j", "x + m * K + at * VALUES"),
    Fault("j < VALUES; j += 4", "j < VALUES - 4; j += 4"),
    Fault("unpack(weight[r], j + v)", "unpack(weight[r], j)"),
    Fault("= fma(xs[m][v], value, sums[r][m]);", "+= xs[m][v] * value;"),
    # the end
    Fault("float total = simd_sum(sums[r][m]);", "float total = sums[r][m];"),
    Fault("simd_sum(sums[ALL - ROWS + r][m])", "simd_sum(sums[r][m])"),
    Fault("(1 + exp(-total))", "(1 + exp(total))"),
    Fault("if (lane == 0 && first", "if (first"),
    Fault("if (lane == 0 && first + r < N) {", "if (lane == 0) {"),
    Fault("first + r < N)", "first + r < N - 1)"),
    Fault("y[m * N + first + r]", "y[m * N + first]"),
    Fault("y[m * N + first + r]", "y[m * ROWS + first + r]"),
]
