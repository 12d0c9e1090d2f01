// matmul_small: a few rows times a dense weight, which is read once.
//
//   y[m, n] = sum over k of x[m, k] * w[n, k]
//
//   x    [M, K]   T: float, half or bfloat; M is 1 to 16
//   w    [N, K]   T
//   y    [M, N]   T; sums are float
//
//   template     T, ROWS (of the weight per threadgroup: 8, 16 or 32), TILES_M (1 or 2: up to 8 or
//                16 rows of x), SIMDS (simdgroups per threadgroup)
//   grid         (32 * SIMDS * ceil(N / ROWS), 1, 1)
//   threadgroup  (32 * SIMDS, 1, 1); SIMDS * 8 * TILES_M * ROWS floats, <= 32 KiB
//
// As quantized_matmul_small, without unpacking: a threadgroup makes ROWS columns of y; its
// simdgroups share K among them and add up at the end. The 8x8 product is w[n, k] * x^T[k, m]. Each
// of the four lanes that share a row of w takes its two values per product out of 8 that lie side
// by side, so that a request of a simdgroup is for whole lines, and the lanes with x follow the
// same order of k. The next values of w are fetched before the products of the present ones.
//
// No row's result depends on the other rows or on their number. It does depend on SIMDS, by the
// order of the sum.

#define UNROLL _Pragma("clang loop unroll(full)")

constant constexpr int VALUES = 8;  // of a row of w, for a lane, at a time

// The two elements of an 8x8 matrix that this lane holds.
inline void set(thread simdgroup_float8x8& matrix, float first, float second) {
  matrix.thread_elements()[0] = first;
  matrix.thread_elements()[1] = second;
}

// COUNT values of a row of K, from k on; zeros behind the end. P is a pointer to device memory, or
// to constant where an array has fewer than 8 elements.
template <int COUNT, typename T, typename P>
inline void fetch(thread T* to, P row, uint k, uint K) {
  if (k + COUNT <= K) {
    UNROLL for (int i = 0; i < COUNT; i++) {
      to[i] = row[k + i];
    }
  } else {
    UNROLL for (int i = 0; i < COUNT; i++) {
      to[i] = k + i < K ? T(row[k + i]) : T(0);
    }
  }
}

// VALUES values of every eighth row of w from `n` on. Behind the last row it is that again, and the
// result is not stored.
template <int TILES, typename T, typename P>
inline void fetch_tiles(thread T (*to)[VALUES], P w, uint n, uint N, uint k, uint K) {
  UNROLL for (int t = 0; t < TILES; t++) {
    fetch<VALUES>(to[t], w + min(n + 8 * t, N - 1) * K, k, K);
  }
}

//! body
constexpr int TILES = ROWS / 8;
constexpr int CHUNK = 4 * VALUES;
const uint M = x_shape[0], K = x_shape[1], N = w_shape[0];
const uint lane = thread_index_in_simdgroup, simd = simdgroup_index_in_threadgroup;
const uint first = threadgroup_position_in_grid.x * ROWS;

// A lane holds elements [row, col] and [row, col + 1] of an 8x8 matrix. Of w these are row `row`
// and two of the VALUES from k_w on; of x^T they are two rows of x and one of VALUES / 2 from k_x.
const uint row = (lane / 4 & 4) + lane / 2 % 4;
const uint col = (lane / 4 & 2) * 2 + lane % 2 * 2;
uint k_w = simd * CHUNK + col / 2 * VALUES;
uint k_x = simd * CHUNK + row * (VALUES / 2);

simdgroup_float8x8 sums[TILES][TILES_M];
UNROLL for (int t = 0; t < TILES; t++) {
  UNROLL for (int i = 0; i < TILES_M; i++) {
    sums[t][i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
}

T now[TILES][VALUES], next[TILES][VALUES];
fetch_tiles<TILES>(now, w, first + row, N, k_w, K);
for (uint k = simd * CHUNK; k < K; k += SIMDS * CHUNK) {
  k_w += SIMDS * CHUNK;
  fetch_tiles<TILES>(next, w, first + row, N, k_w, K);
  T xs[TILES_M][2][VALUES / 2];
  UNROLL for (int i = 0; i < TILES_M; i++) {
    UNROLL for (int e = 0; e < 2; e++) {
      fetch<VALUES / 2>(xs[i][e], x + min(8 * i + col + e, M - 1) * K, k_x, K);
    }
  }
  k_x += SIMDS * CHUNK;
  UNROLL for (int j = 0; j < VALUES / 2; j++) {
    simdgroup_float8x8 b[TILES_M];
    UNROLL for (int i = 0; i < TILES_M; i++) {
      set(b[i], float(xs[i][0][j]), float(xs[i][1][j]));
    }
    UNROLL for (int t = 0; t < TILES; t++) {
      simdgroup_float8x8 a;
      set(a, float(now[t][j]), float(now[t][VALUES / 2 + j]));
      UNROLL for (int i = 0; i < TILES_M; i++) {
        simdgroup_multiply_accumulate(sums[t][i], a, b[i], sums[t][i]);
      }
    }
  }
  UNROLL for (int t = 0; t < TILES; t++) {
    UNROLL for (int v = 0; v < VALUES; v++) {
      now[t][v] = next[t][v];
    }
  }
}

// The simdgroups' sums: [SIMDS][m][n].
threadgroup float parts[SIMDS * TILES_M * 8 * ROWS];
UNROLL for (int t = 0; t < TILES; t++) {
  UNROLL for (int i = 0; i < TILES_M; i++) {
    const uint m = (simd * TILES_M + i) * 8 + col;
    parts[m * ROWS + t * 8 + row] = sums[t][i].thread_elements()[0];
    parts[(m + 1) * ROWS + t * 8 + row] = sums[t][i].thread_elements()[1];
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
for (uint i = thread_position_in_threadgroup.x; i < M * ROWS; i += 32 * SIMDS) {
  const uint m = i / ROWS, n = i % ROWS;
  float total = 0;
  for (int s = 0; s < SIMDS; s++) {
    total += parts[(s * TILES_M * 8 + m) * ROWS + n];
  }
  if (first + n < N) {
    y[m * N + first + n] = T(total);
  }
}
