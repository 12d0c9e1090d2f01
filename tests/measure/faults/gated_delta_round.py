from . import Fault

TESTS = ("tests/test_kernel_gated_delta_round.py",)

FAULTS = [
    # who has what
    Fault("* LANES + lane) * RUN", "* LANES + lane) * RUN + 1"),
    Fault("(i / RUN * LANES", "(i / RUN * RUN * 2"),
    Fault("* RUN + i % RUN;", "* RUN;"),
    Fault("Dk % (LANES * RUN) == 0 || place(i, lane) < Dk", "true"),
    Fault("place(i, lane) < Dk;", "place(i, lane) <= Dk;"),
    Fault("place(i, lane) < Dk;", "place(i, lane) < Dk - 1;"),
    Fault(": 0.0f;\n  }", ": 1.0f;\n  }"),
    Fault("if (inside<Dk>(i, lane)) {", "if (true) {"),
    Fault("(Dk + LANES * RUN - 1) / (LANES * RUN) * RUN", "Dk / (LANES * RUN) * RUN"),
    # sums
    Fault("simd_shuffle_xor(x, 1)", "simd_shuffle_xor(x, 4)"),
    Fault("return x + simd_shuffle_xor(x, 2)", "return x"),
    Fault("x += simd_shuffle_xor(x, 1);", ""),
    Fault("sum = fma(a[i], b[i], sum);", "sum = half(fma(a[i], b[i], sum));"),
    Fault("sum = fma(a[i], b[i], sum);", "sum += a[i] * b[i];"),
    Fault("s[i] = fma(k[i], delta, s[i]);", "s[i] += k[i] * delta;"),
    # a row
    Fault("s[i] *= g;", ""),
    Fault(") * beta;", ");"),
    Fault("(v - dot", "(v + dot"),
    Fault("fma(k[i], delta, s[i])", "fma(k[i], delta, k[i])"),
    Fault("fma(k[i], delta, s[i])", "fma(k[i], delta * g, s[i])"),
    # places
    Fault("key_head = head / (heads / key_heads)", "key_head = head % key_heads"),
    Fault("key_head = head / (heads / key_heads)", "key_head = head / heads"),
    Fault(
        "head = thread_position_in_grid.y % heads", "head = thread_position_in_grid.y % key_heads"
    ),
    Fault("batch = thread_position_in_grid.y / heads", "batch = 0"),
    Fault("* Dv + dv) * Dk;", "* Dk + dv) * Dk;"),
    Fault("? float(from[place(i, lane)])", "? float(half(from[place(i, lane)]))"),
    Fault("min(int(kept[0]), rows_old)", "int(kept[0]) - 1"),
    Fault("min(int(kept[0]), rows_old)", "int(kept[0])"),
    Fault("min(int(kept[0]), rows_old)", "rows_old"),
    Fault("t < count;", "t <= count;"),
    Fault("batch * rows_old", "batch * rows_new"),
    Fault("batch * rows_new", "batch * rows_old"),
    Fault("k_old + (row * key_heads + key_head)", "k_old + (row * heads + key_head)"),
    Fault("float(beta_old[one])", "float(beta_old[row])"),
    Fault("float(g_old[one])", "float(beta_old[one])"),
    Fault("v_old[one * Dv + dv]", "v_old[one * Dv]"),
    Fault("store<Dk, N>(committed + at, s, lane);", ""),
    Fault("t < rows_new;", "t < rows_new - 1;"),
    Fault("(k, k_new + key, lane)", "(k, q + key, lane)"),
    Fault("v_new[one * Dv + dv]", "v_new[row * Dv + dv]"),
    # results
    Fault("dot_product<N>(s, q_part)", "dot_product<N>(s, k)"),
    Fault("if (lane == 0) {", "if (true) {"),
    Fault("y[one * Dv + dv]", "y[row * Dv + dv]"),
    Fault("store<Dk, N>(behind + at, s, lane);", "store<Dk, N>(behind + at, k, lane);"),
    Fault("behind[0] = 0.0f;", ""),
    Fault(
        "(thread_position_in_grid.x == 0 && thread_position_in_grid.y == 0)",
        "(thread_position_in_grid.x == 0)",
    ),
]
