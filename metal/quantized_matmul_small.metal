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
// A threadgroup makes ROWS columns of y. Its simdgroups share K among them and add up at the end.
//
// The 8x8 product is weight[n, k] * x^T[k, m]: a lane needs two values of k of one weight row for
// each. A sum may take k in any order, so each of the four lanes that share a weight row takes its
// two out of a block of values that lie side by side, a whole number of words. Every word of the
// weight thus goes once from memory to the registers of the one lane that unpacks it, and the lanes
// with x follow the same order of k. A simdgroup fetches its next words before it works on the
// present ones, so that memory is never idle.
//
// A column of a product depends on that column of x alone: no row's result depends on the others or
// on their number. It does depend on SIMDS, by the order of the sum.
//
// GATHER: of the threadgroups for pairs with the same weight, the first takes all their rows (as
// many as TILES_M allows, then the next) and the others stop. So each weight in use is read once.

#define UNROLL _Pragma("clang loop unroll(full)")

// Values in a block: 16 bytes of them, but no less than a whole number of words.
constexpr int block_values(int bits) { return bits == 8 ? 16 : 32; }

// What a lane holds of a weight row.
template <int BITS>
struct Block {
  uint words[block_values(BITS) * BITS / 32];
  float scale, bias;
};

// Value i of a block. Where the compiler knows i this is a shift and a mask, at times of two words.
template <int BITS>
inline float unpack(const thread Block<BITS>& block, int i) {
  const int word = i * BITS / 32, shift = i * BITS % 32;
  uint q = block.words[word] >> shift;
  if (shift + BITS > 32) {
    q |= block.words[word + 1] << (32 - shift);
  }
  return fma(float(q & ((1u << BITS) - 1)), block.scale, block.bias);
}

// Block number `at` of every eighth row of a weight from `row` on; zeros behind the last block.
// W and S are pointers to device memory, or to constant where an array has fewer than 8 elements.
template <int BITS, int GROUP, int TILES, typename W, typename S>
inline void fetch(
    thread Block<BITS>* to, W w, S scales, S biases, uint row, uint end, uint at, uint blocks) {
  constexpr int VALUES = block_values(BITS), WORDS = VALUES * BITS / 32;
  UNROLL for (int t = 0; t < TILES; t++) {
    if (at >= blocks) {
      to[t] = Block<BITS>{};
      continue;
    }
    const uint n = min(row + 8 * t, end - 1);  // behind the last row: that again, never stored
    const uint block = n * blocks + at;
    UNROLL for (int i = 0; i < WORDS; i++) {
      to[t].words[i] = w[block * WORDS + i];
    }
    to[t].scale = float(scales[block * VALUES / GROUP]);
    to[t].bias = float(biases[block * VALUES / GROUP]);
  }
}

// The two elements of an 8x8 matrix that this lane holds.
inline void set(thread simdgroup_float8x8& matrix, float first, float second) {
  matrix.thread_elements()[0] = first;
  matrix.thread_elements()[1] = second;
}

// Four values of x from `at` on, zeros behind the end of K.
template <typename T>
inline float4 values(const device T* x, uint at, bool inside) {
  if (!inside) {
    return float4(0);
  }
  return float4(float(x[at]), float(x[at + 1]), float(x[at + 2]), float(x[at + 3]));
}

// GATHER: the pairs from `self` on with the weight of `self`, MOST of them or fewer, and their
// number; 0 where a threadgroup of an earlier pair has this one. I is a pointer as W is.
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
constexpr int VALUES = block_values(BITS);
constexpr int TILES_N = ROWS / 8;                  // of each weight
constexpr int TILES = TILES_N * (SWIGLU ? 2 : 1);  // of the gate, then of up
const uint K = x_shape[1], N = w_shape[GATHER];
const uint blocks = K / VALUES, chunks = (blocks + 3) / 4;  // a chunk: a block for each of 4 lanes
const uint lane = thread_index_in_simdgroup, simd = simdgroup_index_in_threadgroup;
const uint first = threadgroup_position_in_grid.x * ROWS;

// A lane holds elements [row, col] and [row, col + 1] of an 8x8 matrix. Of the weight these are row
// `row` and block `col / 2`, one value out of each half of it; of x^T block `row / 2`, half
// `row % 2`, for two rows of x.
const uint row = (lane / 4 & 4) + lane / 2 % 4;
const uint col = (lane / 4 & 2) * 2 + lane % 2 * 2;

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
const device T* from[TILES_M][2];
for (int i = 0; i < TILES_M; i++) {
  for (int e = 0; e < 2; e++) {
    const uint m = min(8 * i + col + e, M - 1);  // behind the last row: that again, never stored
    from[i][e] = x + (GATHER ? pairs[m] * x_shape[0] / indices_shape[0] : m) * K;
  }
}

simdgroup_float8x8 sums[TILES][TILES_M];
UNROLL for (int t = 0; t < TILES; t++) {
  UNROLL for (int i = 0; i < TILES_M; i++) {
    sums[t][i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
}

Block<BITS> now[TILES], next[TILES];
const uint begin = above + first + row, end = above + N;
uint at = 4 * simd + col / 2;
fetch<BITS, GROUP, TILES_N>(now, w, scales, biases, begin, end, at, blocks);
if (SWIGLU) {
  fetch<BITS, GROUP, TILES_N>(
      now + TILES - TILES_N, up_w, up_scales, up_biases, begin, end, at, blocks);
}
for (uint chunk = simd; chunk < chunks; chunk += SIMDS) {
  at += 4 * SIMDS;
  fetch<BITS, GROUP, TILES_N>(next, w, scales, biases, begin, end, at, blocks);
  if (SWIGLU) {
    fetch<BITS, GROUP, TILES_N>(
        next + TILES - TILES_N, up_w, up_scales, up_biases, begin, end, at, blocks);
  }
  const bool inside = 4 * chunk + row / 2 < blocks;
  const uint k = 4 * chunk * VALUES + row * (VALUES / 2);
  UNROLL for (int j = 0; j < VALUES / 2; j += 4) {
    float4 xs[TILES_M][2];
    UNROLL for (int i = 0; i < TILES_M; i++) {
      xs[i][0] = values(from[i][0], k + j, inside);
      xs[i][1] = values(from[i][1], k + j, inside);
    }
    UNROLL for (int v = 0; v < 4; v++) {
      simdgroup_float8x8 b[TILES_M];
      UNROLL for (int i = 0; i < TILES_M; i++) {
        set(b[i], xs[i][0][v], xs[i][1][v]);
      }
      UNROLL for (int t = 0; t < TILES; t++) {
        simdgroup_float8x8 a;
        set(a, unpack(now[t], j + v), unpack(now[t], VALUES / 2 + j + v));
        UNROLL for (int i = 0; i < TILES_M; i++) {
          if (!GATHER || 8 * i < M) {
            simdgroup_multiply_accumulate(sums[t][i], a, b[i], sums[t][i]);
          }
        }
      }
    }
  }
  UNROLL for (int t = 0; t < TILES; t++) {
    now[t] = next[t];
  }
}

// The simdgroups' sums: [SIMDS][m][n], up behind the gate.
constexpr int WIDTH = TILES * 8;
threadgroup float parts[SIMDS * TILES_M * 8 * WIDTH];
UNROLL for (int t = 0; t < TILES; t++) {
  UNROLL for (int i = 0; i < TILES_M; i++) {
    const uint m = (simd * TILES_M + i) * 8 + col;
    parts[m * WIDTH + t * 8 + row] = sums[t][i].thread_elements()[0];
    parts[(m + 1) * WIDTH + t * 8 + row] = sums[t][i].thread_elements()[1];
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
for (uint i = thread_position_in_threadgroup.x; i < M * ROWS; i += 32 * SIMDS) {
  const uint m = i / ROWS, n = i % ROWS;
  float2 total = float2(0);
  for (int s = 0; s < SIMDS; s++) {
    const uint part = (s * TILES_M * 8 + m) * WIDTH + n;
    total += float2(parts[part], parts[part + WIDTH - ROWS]);
  }
  if (first + n < N) {
    const uint to = (GATHER ? pairs[m] : m) * N + first + n;
    y[to] = T(SWIGLU ? total[0] / (1 + exp(-total[0])) * total[1] : total[0]);
  }
}
