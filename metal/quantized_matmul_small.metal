// quantized_matmul_small: a few rows times an affine-quantised weight, which is read once.
//
//   y[m, n] = sum over k of x[m, k] * weight[n, k],   weight = scale * q + bias
//   SWIGLU:  y = silu(x @ gate^T) * (x @ up^T), the gate being w, scales, biases
//
//   x                        [M, K]               float, half or bfloat; M is 1 to 16
//   w, up_w                  [N, K * BITS / 32]   uint; values of BITS 2, 3, 4, 5, 6 or 8, one
//                                                 stream of bits per row, lowest first
//   scales, biases, up_...   [N, K / GROUP]       float, half or bfloat; GROUP 32, 64 or 128
//   y                        [M, N]               T, the type of x; sums are float
//
//   GATHER:  y[p, n] is for weight number indices[p]; the weights have a leading dimension E.
//   indices                  [P]                  integers below E, in any order, repeated at will
//   x                        [P or P / S, K]      S pairs one after another share a row of x
//   y                        [P, N]
//
//   template     T, BITS, GROUP, ROWS (of the weight per threadgroup: 8, 16 or 32), TILES_M (1 or
//                2: up to 8 or 16 rows of x), SIMDS (simdgroups per threadgroup), SWIGLU (0: up_*
//                are not used), GATHER (0: indices are not used)
//   grid         (32 * SIMDS * ceil(N / ROWS), GATHER ? P : 1, 1)
//   threadgroup  (32 * SIMDS, 1, 1); SIMDS * 8 * TILES_M * ROWS * (1 + SWIGLU) floats, which is at
//                most half of 32 KiB for 256 threads
//
// A threadgroup makes ROWS columns of y, as tile_product says: its simdgroups share K among them
// and add up at the end. No row's result depends on the others or on their number. It does depend
// on SIMDS, by the order of the sum.
//
// GATHER: of the threadgroups for pairs with the same weight, the first takes all their rows (as
// many as TILES_M allows, then the next) and the others stop. So each weight in use is read once.

//! use tile_product

// GATHER: the pairs from `self` on with the weight of `self`, MOST of them or fewer, and their
// number; 0 where a threadgroup of an earlier pair has this one. I is a pointer to device memory,
// or to constant where there are fewer than 8 elements.
template <uint MOST, typename I>
inline uint gather(threadgroup uint* pairs, I indices, uint P, uint self, uint lane, bool writes) {
  const uint wanted = indices[self];
  uint earlier = 0, found = 0;
  for (uint p = 0; p < self; p += 32) {
    earlier += simd_sum(uint(p + lane < self && indices[p + lane] == wanted));
  }
  for (uint p = self; p < P && earlier % MOST == 0 && found < MOST; p += 32) {
    const uint here = p + lane < P && indices[p + lane] == wanted;
    const uint at = found + simd_prefix_exclusive_sum(here);
    if (writes && here && at < MOST) {
      pairs[at] = p + lane;
    }
    found += simd_sum(here);
  }
  return min(found, MOST);
}

//! body
constexpr int WEIGHTS = SWIGLU ? 2 : 1, WIDTH = ROWS * WEIGHTS;  // columns: of the gate, then of up
const uint K = x_shape[1], N = w_shape[GATHER];
const uint lane = thread_index_in_simdgroup, simd = simdgroup_index_in_threadgroup;
const uint first = threadgroup_position_in_grid.x * ROWS;

uint M = x_shape[0], above = 0;       // rows to work on, and rows of weights before this one's
threadgroup uint pairs[8 * TILES_M];  // GATHER: which pairs these rows are
if (GATHER) {
  const uint self = threadgroup_position_in_grid.y;
  M = gather<8 * TILES_M>(pairs, indices, indices_shape[0], self, lane, simd == 0);
  if (M == 0) {
    return;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  above = indices[self] * N;
}
const device T* from[2 * TILES_M];
for (int i = 0; i < 2 * TILES_M; i++) {
  // behind the last row: that again, never stored
  const uint m = min(8 * (i / 2) + col_of(lane) + i % 2, M - 1);
  from[i] = x + (GATHER ? pairs[m] * x_shape[0] / indices_shape[0] : m) * K;
}

const Weight<T, BITS, GROUP, decltype(w), decltype(scales)> weight = {
    w, scales, biases, above + N, K};
const Weight<T, BITS, GROUP, decltype(up_w), decltype(up_scales)> up = {
    up_w, up_scales, up_biases, above + N, K};
threadgroup float parts[SIMDS * 8 * TILES_M * WIDTH];
multiply<SIMDS, WEIGHTS, WIDTH / 8, TILES_M, GATHER>(
    parts, weight, up, above + first, from, M, K, simd, lane);
threadgroup_barrier(mem_flags::mem_threadgroup);
for (uint i = thread_position_in_threadgroup.x; i < M * ROWS; i += 32 * SIMDS) {
  const uint m = i / ROWS, n = i % ROWS;
  if (first + n < N) {
    float value = total<SIMDS, TILES_M, WIDTH>(parts, m, n);
    if (SWIGLU) {
      value = value / (1 + exp(-value)) * total<SIMDS, TILES_M, WIDTH>(parts, m, ROWS + n);
    }
    y[(GATHER ? pairs[m] : m) * N + first + n] = T(value);
  }
}
