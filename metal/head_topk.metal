// head_topk: the head of a few rows down to the KEEP largest logits and the log-sum-exp of each.
// Logits themselves are not written. A second kernel, head_topk_merge, joins what this one leaves.
//
//   logit[m, n] = sum over k of x[m, k] * weight[n, k]
//
//   x               [M, K]   T: float, half or bfloat; M is 1 to 16
//   w               [N, K * BITS / 32] uint, packed as packed.metal says; [N, K] of T if BITS is 0
//   scales, biases  [N, K / GROUP]     float, half or bfloat; not used if BITS is 0
//
//   values, ids     [M, G, KEEP]       float, int: the largest logits of a strip of the vocabulary,
//                                      descending, of equal ones that of the lower id first; what
//                                      a strip lacks is -MAXFLOAT with id 0
//   tallies         [M, G, 2]          float: the largest logit of a strip; sum of exp(logit - it)
//
//   template     T, BITS, GROUP, KEEP (1 to 32), TILES_M (1 or 2: up to 8 or 16 rows of x), SIMDS
//                (simdgroups per threadgroup: 1, 2, 4 or 8)
//   grid         (32 * SIMDS * G, 1, 1), G from 1 to ceil(N / 32)
//   threadgroup  (32 * SIMDS, 1, 1); SIMDS * 256 * TILES_M floats: at most half of 32 KiB for 256
//                threads
//
// A threadgroup walks a strip of the vocabulary, 32 rows of the weight at a time. The product is
// that of tile_product; then each simdgroup takes some rows of x, a lane one logit of each. What it
// keeps of a row is one candidate and one tally per lane, in registers.
//
// Logits are sums in float, and no row's depend on the other rows or on their number. They depend
// on SIMDS, by the order of the sum; the log-sum-exp on SIMDS and G.

//! use tile_product
//! use selection

//! body
constexpr int WIDTH = 32;                  // of a tile: a logit per lane
constexpr int MINE = 8 * TILES_M / SIMDS;  // rows of x of a simdgroup
const uint M = x_shape[0], K = x_shape[1], N = w_shape[0];
const uint lane = thread_index_in_simdgroup, simd = simdgroup_index_in_threadgroup;
const uint group = threadgroup_position_in_grid.x, groups = threadgroups_per_grid.x;
const uint tiles = (N + WIDTH - 1) / WIDTH, end = (group + 1) * tiles / groups;

decltype(x) from[2 * TILES_M];
for (int i = 0; i < 2 * TILES_M; i++) {
  // behind the last row: that again, never looked at
  from[i] = x + min(8 * (i / 2) + col_of(lane) + i % 2, M - 1) * K;
}
const Weight<T, BITS, GROUP, decltype(w), decltype(scales)> weight = {w, scales, biases, N, K};

Candidate best[MINE];
Tally tally[MINE];
UNROLL for (int r = 0; r < MINE; r++) {
  best[r] = nobody();
  tally[r] = nothing();
}
threadgroup float parts[SIMDS * 8 * TILES_M * WIDTH];
for (uint tile = group * tiles / groups; tile < end; tile++) {
  multiply<SIMDS, 1, WIDTH / 8, TILES_M, false>(
      parts, weight, weight, tile * WIDTH, from, M, K, simd, lane);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the sums are there
  const uint n = tile * WIDTH + lane;
  UNROLL for (int r = 0; r < MINE; r++) {
    const uint m = r * SIMDS + simd;
    if (m < M) {
      const float logit = n < N ? total<SIMDS, TILES_M, WIDTH>(parts, m, lane) : -MAXFLOAT;
      tally[r] = join(tally[r], Tally{logit, 1});
      offer<KEEP>(best[r], Candidate{logit, int(n)}, lane);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the sums are used up
}

UNROLL for (int r = 0; r < MINE; r++) {
  const uint m = r * SIMDS + simd, to = m * groups + group;
  if (m < M) {
    const Tally all = join_lanes(tally[r]);
    if (lane < KEEP) {
      values[to * KEEP + lane] = best[r].value;
      ids[to * KEEP + lane] = best[r].id;
    }
    if (lane == 0) {
      tallies[2 * to] = all.top;
      tallies[2 * to + 1] = all.sum;
    }
  }
}
