// packed: rows of an affine-quantised weight, in registers. For kernels that `use` it.
//
//   w               [N, K * BITS / 32]   uint; values of BITS 2, 3, 4, 5, 6 or 8, one stream of
//                                        bits per row, lowest first
//   scales, biases  [N, K / GROUP]       float, half or bfloat; GROUP 32, 64 or 128
//   weight[n, k] = scale * q + bias
//
// A lane takes blocks: VALUES that lie side by side in a row, a whole number of words, in one
// group.

#define UNROLL _Pragma("clang loop unroll(full)")

// What a lane holds of a weight row.
template <int BITS, int VALUES>
struct Block {
  uint words[VALUES * BITS / 32];
  float scale, bias;
};

// Value i of a block. Where the compiler knows i this is a shift and a mask, at times of two words.
template <int BITS, int VALUES>
inline float unpack(const thread Block<BITS, VALUES>& block, int i) {
  const int word = i * BITS / 32, shift = i * BITS % 32;
  uint q = block.words[word] >> shift;
  if (shift + BITS > 32) {
    q |= block.words[word + 1] << (32 - shift);
  }
  return fma(float(q & ((1u << BITS) - 1)), block.scale, block.bias);
}

// Block number `at` of the weight, rows one after another. W and S are pointers to device memory,
// or to constant where an array has fewer than 8 elements.
template <int GROUP, int BITS, int VALUES, typename W, typename S>
inline void fetch(thread Block<BITS, VALUES>& to, W w, S scales, S biases, uint at) {
  constexpr int WORDS = VALUES * BITS / 32;
  UNROLL for (int i = 0; i < WORDS; i++) {
    to.words[i] = w[at * WORDS + i];
  }
  to.scale = float(scales[at * VALUES / GROUP]);
  to.bias = float(biases[at * VALUES / GROUP]);
}
