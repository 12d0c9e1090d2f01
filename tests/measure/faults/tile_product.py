"""Of `metal/tile_product.metal`: for every kernel that uses it, and for either kind of weight."""

from . import Fault

PACKED = [
    Fault("to = Piece{};", ""),
    Fault("at >= K / VALUES", "at > K / VALUES"),
    Fault("min(n, end - 1) * (K / VALUES) + at", "n * (K / VALUES) + at"),
    Fault("min(n, end - 1) * (K / VALUES) + at", "min(n, end) * (K / VALUES) + at"),
    Fault("min(n, end - 1) * (K / VALUES) + at", "min(n, end - 1) * (K / VALUES)"),
    Fault("min(n, end - 1) * (K / VALUES) + at", "min(n, end - 1) + at"),
]

DENSE = [
    Fault("w + min(n, end - 1) * K", "w + n * K"),
    Fault("w + min(n, end - 1) * K", "w + min(n, end) * K"),
    Fault("w + min(n, end - 1) * K", "w + min(n, end - 1) * end"),
    Fault("at * VALUES, K)", "at, K)"),
    Fault("float(piece.values[i])", "float(piece.values[0])"),
    Fault("k + COUNT <= K", "k + COUNT <= K + 1"),
    Fault("!WHOLE && k + i < K", "!WHOLE && k + i <= K"),
    Fault("!WHOLE && k + i < K", "!WHOLE && k + i < K - 1"),
    Fault("!WHOLE && k + i < K", "WHOLE && k + i < K"),
    Fault(": V(0);", ": V(1);"),
]

PRODUCT = [
    # who has what
    Fault("k + COUNT <= K", "k <= K"),
    Fault("V(row[k + i]);\n    }\n  } else", "V(row[k]);\n    }\n  } else"),
    Fault("(lane / 4 & 4) + lane / 2 % 4", "lane / 4"),
    Fault("(lane / 4 & 2) * 2 + lane % 2 * 2", "lane % 4 * 2"),
    Fault("matrix.thread_elements()[1] = second;", "matrix.thread_elements()[1] = first;"),
    Fault("n + 8 * t, at", "n + 4 * t, at"),
    Fault("make_filled_simdgroup_matrix<float, 8, 8>(0.0f)", "simdgroup_float8x8(1.0f)"),
    Fault("uint at = 4 * simd + col / 2;", "uint at = 4 * simd + col;"),
    Fault("read_tiles<TILES_N>(now, weight, first + row, at);", ""),
    Fault("weight.read(to[t], n", "weight.read(to[0], n"),
    # the loop
    Fault("k = 4 * VALUES * simd;", "k = 0;"),
    Fault("k < K; k += 4 * VALUES * SIMDS", "k + 4 * VALUES <= K; k += 4 * VALUES * SIMDS"),
    Fault("k < K; k += 4 * VALUES * SIMDS", "k < K; k += 4 * VALUES"),
    Fault("at += 4 * SIMDS;", "at += 4;"),
    Fault("row * (VALUES / 2) + j", "row * VALUES + j"),
    Fault("row * (VALUES / 2) + j", "row * (VALUES / 2)"),
    Fault("j < VALUES / 2; j += 4", "j < VALUES / 2; j += 8"),
    Fault("from[2 * i + e]", "from[2 * i]"),
    Fault("from[2 * i + e]", "from[e]"),
    Fault("xs[i][0][v], xs[i][1][v]", "xs[i][1][v], xs[i][0][v]"),
    Fault("A::value(now[t], VALUES / 2 + j + v)", "A::value(now[t], j + v)"),
    Fault("(sums[t][i], a, b[i], sums[t][i])", "(sums[t][0], a, b[i], sums[t][0])"),
    Fault("sums[t][i], a, b[i], sums[t][i]", "sums[t][i], a, b[0], sums[t][i]"),
    Fault("now[t] = next[t];", ""),
    # the end
    Fault("(simd * TILES_M + i) * 8 + col", "i * 8 + col"),
    Fault("parts[(m + 1) * (TILES", "parts[m * (TILES"),
    Fault("float sum = 0;\n  for (int s = 0;", "float sum = 0;\n  for (int s = 1;"),
    Fault("s < SIMDS; s++", "s < SIMDS - 1; s++"),
    Fault("+ row] = sums[t][i].thread_elements()[0]", "] = sums[t][i].thread_elements()[0]"),
    Fault("= sums[t][i].thread_elements()[1]", "= half(sums[t][i].thread_elements()[1])"),
    Fault("(s * TILES_M * 8 + m) * WIDTH", "(s * 8 + m) * WIDTH"),
]
