// tile_product: some rows of a weight times a few rows of x, by simdgroup matrices. For kernels
// that `use` it: quantized_matmul_small, matmul_small, head_topk.
//
// The 8x8 product is weight[n, k] * x^T[k, m]: a lane needs two values of k of one weight row for
// each. A sum may take k in any order, so each of the four lanes that share a weight row takes its
// two out of a block of values that lie side by side. Every word of the weight thus goes once from
// memory to the registers of the one lane that unpacks it, and the lanes with x follow the same
// order of k. A simdgroup fetches its next blocks before it works on the present ones, so that
// memory is never idle. The simdgroups share K among them.
//
// A column of a product depends on that column of x alone: no row's result depends on the others or
// on their number. It does depend on SIMDS, by the order of the sum.

//! use packed

// A weight [end, K], packed in BITS; or dense, of T, where BITS is 0 (then scales and biases are
// not used). W and S are pointers to device memory, or to constant where an array has fewer than 8
// elements. VALUES in a block: 16 bytes of them, but no less than a whole number of words.
template <typename T, int BITS, int GROUP, typename W, typename S>
struct Weight {
  static constant constexpr int VALUES = BITS == 8 ? 16 : 32;
  static constant constexpr bool WHOLE = true;  // K is a multiple of VALUES
  typedef Block<BITS, VALUES> Piece;
  W w;
  S scales, biases;
  uint end, K;

  // Block number `at` of row n. Behind the last row it is that row again (a product that nobody
  // uses), behind the end of a row zeros.
  void read(thread Piece& to, uint n, uint at) const {
    if (at >= K / VALUES) {
      to = Piece{};
    } else {
      fetch<GROUP>(to, w, scales, biases, min(n, end - 1) * (K / VALUES) + at);
    }
  }
  static float value(const thread Piece& piece, int i) { return unpack(piece, i); }
};

// COUNT values of a row of K, from k on; zeros behind the end. WHOLE: all or none are behind it.
template <int COUNT, bool WHOLE, typename V, typename P>
inline void fetch_values(thread V* to, P row, uint k, uint K) {
  if (k + COUNT <= K) {
    UNROLL for (int i = 0; i < COUNT; i++) {
      to[i] = V(row[k + i]);
    }
  } else {
    UNROLL for (int i = 0; i < COUNT; i++) {
      to[i] = !WHOLE && k + i < K ? V(row[k + i]) : V(0);
    }
  }
}

template <typename T>
struct Dense {
  T values[8];
};

template <typename T, int GROUP, typename W, typename S>
struct Weight<T, 0, GROUP, W, S> {
  static constant constexpr int VALUES = 8;
  static constant constexpr bool WHOLE = false;
  typedef Dense<T> Piece;
  W w;
  S scales, biases;
  uint end, K;

  void read(thread Piece& to, uint n, uint at) const {
    fetch_values<VALUES, WHOLE>(to.values, w + min(n, end - 1) * K, at * VALUES, K);
  }
  static float value(const thread Piece& piece, int i) { return float(piece.values[i]); }
};

// A lane holds elements [row, col] and [row, col + 1] of an 8x8 matrix. Of the weight these are row
// `row` and block `col / 2`, one value out of each half of it; of x^T block `row / 2`, half
// `row % 2`, for rows `col` and `col + 1` of x.
inline uint row_of(uint lane) { return (lane / 4 & 4) + lane / 2 % 4; }
inline uint col_of(uint lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

inline void set(thread simdgroup_float8x8& matrix, float first, float second) {
  matrix.thread_elements()[0] = first;
  matrix.thread_elements()[1] = second;
}

// This lane's part of every eighth row of a weight.
template <int TILES, typename R, typename Piece>
inline void read_tiles(thread Piece* to, const thread R& weight, uint n, uint at) {
  UNROLL for (int t = 0; t < TILES; t++) {
    weight.read(to[t], n + 8 * t, at);
  }
}

// Leaves the sums of this simdgroup, one of SIMDS, in parts: [SIMDS][8 * TILES_M][TILES * 8].
// They are for the rows of `weight` from `first` on; if WEIGHTS is 2 for half as many, then for as
// many of `up`. `from` are this lane's rows of x, 8 i + col and 8 i + col + 1 for each i below
// TILES_M. If FEWER, then tiles that begin behind row M are left out.
template <
    int SIMDS, int WEIGHTS, int TILES, int TILES_M, bool FEWER,
    typename A, typename B, typename P>
inline void multiply(
    threadgroup float* parts, const thread A& weight, const thread B& up, uint first,
    const thread P* from, uint M, uint K, uint simd, uint lane) {
  constexpr int VALUES = A::VALUES, TILES_N = TILES / WEIGHTS;
  const uint row = row_of(lane), col = col_of(lane);
  simdgroup_float8x8 sums[TILES][TILES_M];
  UNROLL for (int t = 0; t < TILES; t++) {
    UNROLL for (int i = 0; i < TILES_M; i++) {
      sums[t][i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
  }
  typename A::Piece now[TILES], next[TILES];
  uint at = 4 * simd + col / 2;
  read_tiles<TILES_N>(now, weight, first + row, at);
  if (WEIGHTS == 2) {
    read_tiles<TILES_N>(now + TILES - TILES_N, up, first + row, at);
  }
  for (uint k = 4 * VALUES * simd; k < K; k += 4 * VALUES * SIMDS) {
    at += 4 * SIMDS;
    read_tiles<TILES_N>(next, weight, first + row, at);
    if (WEIGHTS == 2) {
      read_tiles<TILES_N>(next + TILES - TILES_N, up, first + row, at);
    }
    UNROLL for (int j = 0; j < VALUES / 2; j += 4) {
      float xs[TILES_M][2][4];
      UNROLL for (int i = 0; i < TILES_M; i++) {
        UNROLL for (int e = 0; e < 2; e++) {
          const uint here = k + row * (VALUES / 2) + j;
          fetch_values<4, A::WHOLE>(xs[i][e], from[2 * i + e], here, K);
        }
      }
      UNROLL for (int v = 0; v < 4; v++) {
        simdgroup_float8x8 b[TILES_M];
        UNROLL for (int i = 0; i < TILES_M; i++) {
          set(b[i], xs[i][0][v], xs[i][1][v]);
        }
        UNROLL for (int t = 0; t < TILES; t++) {
          simdgroup_float8x8 a;
          set(a, A::value(now[t], j + v), A::value(now[t], VALUES / 2 + j + v));
          UNROLL for (int i = 0; i < TILES_M; i++) {
            if (!FEWER || 8 * i < M) {
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
  UNROLL for (int t = 0; t < TILES; t++) {
    UNROLL for (int i = 0; i < TILES_M; i++) {
      const uint m = (simd * TILES_M + i) * 8 + col;
      parts[m * (TILES * 8) + t * 8 + row] = sums[t][i].thread_elements()[0];
      parts[(m + 1) * (TILES * 8) + t * 8 + row] = sums[t][i].thread_elements()[1];
    }
  }
}

// The simdgroups' sums of column n of the weight and row m of x, added up.
template <int SIMDS, int TILES_M, int WIDTH>
inline float total(const threadgroup float* parts, uint m, uint n) {
  float sum = 0;
  for (int s = 0; s < SIMDS; s++) {
    sum += parts[(s * TILES_M * 8 + m) * WIDTH + n];
  }
  return sum;
}
