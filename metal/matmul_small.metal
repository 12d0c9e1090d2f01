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
// A threadgroup makes ROWS columns of y, as tile_product says: its simdgroups share K among them
// and add up at the end. No row's result depends on the other rows or on their number. It does
// depend on SIMDS, by the order of the sum.

//! use tile_product

//! body
const uint M = x_shape[0], K = x_shape[1], N = w_shape[0];
const uint lane = thread_index_in_simdgroup, simd = simdgroup_index_in_threadgroup;
const uint first = threadgroup_position_in_grid.x * ROWS;

decltype(x) from[2 * TILES_M];
for (int i = 0; i < 2 * TILES_M; i++) {
  // behind the last row: that again, never stored
  from[i] = x + min(8 * (i / 2) + col_of(lane) + i % 2, M - 1) * K;
}
const Weight<T, 0, 0, decltype(w), decltype(w)> weight = {w, w, w, N, K};
threadgroup float parts[SIMDS * 8 * TILES_M * ROWS];
multiply<SIMDS, 1, ROWS / 8, TILES_M, false>(
    parts, weight, weight, first, from, M, K, simd, lane);
threadgroup_barrier(mem_flags::mem_threadgroup);
for (uint i = thread_position_in_threadgroup.x; i < M * ROWS; i += 32 * SIMDS) {
  const uint m = i / ROWS, n = i % ROWS;
  if (first + n < N) {
    y[m * N + first + n] = T(total<SIMDS, TILES_M, ROWS>(parts, m, n));
  }
}
