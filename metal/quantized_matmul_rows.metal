// quantized_matmul_rows: one to five rows times an affine-quantised weight, without matrix units.
//
//   y[m, n] = sum over k of x[m, k] * weight[n, k],   weight = scale * q + bias
//   SWIGLU:  y = silu(x @ gate^T) * (x @ up^T), the gate being w, scales, biases
//
//   x                        [M, K]               T: float, half or bfloat
//   w, up_w                  [N, K * BITS / 32]   uint; values of BITS 2, 3, 4, 5, 6 or 8, one
//                                                 stream of bits per row, lowest first
//   scales, biases, up_...   [N, K / GROUP]       float, half or bfloat; GROUP 32, 64 or 128
//   y                        [M, N]               T; sums are float
//
//   template     T, BITS, GROUP, M (1 to 5), ROWS (of each weight per simdgroup), SWIGLU (0: up_*
//                are not used)
//   grid         (32 * ceil(N / ROWS), 1, 1)
//   threadgroup  (any multiple of 32, 1, 1); no threadgroup memory, no barrier
//
// For chips whose matrix units are no faster than their other arithmetic, and would work on 8 rows.
// A simdgroup makes ROWS columns of y; its lanes share K among them and add up at the end. A lane
// unpacks each of its values once and multiplies it with all M rows of x, and it has x in registers
// for all ROWS rows of the weight. So a word of the weight is read once, by one lane.
//
// Sums are made of explicit multiply-adds in an order that depends on K alone: neither the other
// rows nor M, ROWS or the size of a threadgroup change a bit of a result.

//! use packed

// The share of a lane at a time: 8 bytes of values, or more for whole words.
constexpr int block_values(int bits) { return bits % 2 ? 32 : bits == 6 ? 16 : 64 / bits; }

template <typename T>
inline float4 four(const device T* x) {
  return float4(float(x[0]), float(x[1]), float(x[2]), float(x[3]));
}

//! body
constexpr int VALUES = block_values(BITS);
constexpr int ALL = ROWS * (SWIGLU ? 2 : 1);  // rows of the gate, then of up
const uint K = x_shape[1], N = w_shape[0], blocks = K / VALUES;
const uint lane = thread_index_in_simdgroup;
const uint first = thread_position_in_grid.x / 32 * ROWS;

float sums[ALL][M];
UNROLL for (int r = 0; r < ALL; r++) {
  UNROLL for (int m = 0; m < M; m++) {
    sums[r][m] = 0;
  }
}

for (uint at = lane; at < blocks; at += 32) {
  Block<BITS, VALUES> weight[ALL];
  UNROLL for (int r = 0; r < ROWS; r++) {
    const uint n = min(first + r, N - 1);  // behind the last row: that again, never stored
    fetch<GROUP>(weight[r], w, scales, biases, n * blocks + at);
    if (SWIGLU) {
      fetch<GROUP>(weight[ALL - ROWS + r], up_w, up_scales, up_biases, n * blocks + at);
    }
  }
  UNROLL for (int j = 0; j < VALUES; j += 4) {
    float4 xs[M];
    UNROLL for (int m = 0; m < M; m++) {
      xs[m] = four(x + m * K + at * VALUES + j);
    }
    UNROLL for (int r = 0; r < ALL; r++) {
      UNROLL for (int v = 0; v < 4; v++) {
        const float value = unpack(weight[r], j + v);
        UNROLL for (int m = 0; m < M; m++) {
          sums[r][m] = fma(xs[m][v], value, sums[r][m]);
        }
      }
    }
  }
}

UNROLL for (int r = 0; r < ROWS; r++) {
  UNROLL for (int m = 0; m < M; m++) {
    float total = simd_sum(sums[r][m]);
    if (SWIGLU) {
      total = total / (1 + exp(-total)) * simd_sum(sums[ALL - ROWS + r][m]);
    }
    if (lane == 0 && first + r < N) {
      y[m * N + first + r] = T(total);
    }
  }
}
