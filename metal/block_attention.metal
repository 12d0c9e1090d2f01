// Attention of a block's rows to a cache that holds their own keys and values too. First of two
// passes: each threadgroup attends to one chunk of the context; block_attention_merge joins them.
//
// inputs   q [1, H, R, D]; k, v [1, Hkv, slots, D], H a multiple of Hkv, all of type T
//          start [1] int: slot of the first row; row r stands in slot start + r
//          scale [] float
// outputs  partial [chunks, H, R, D] float: sums of exp2(score - top) times value
//          stats [chunks, H, R, 2] float: top, the largest score times log2(e), and the sum of
//          exp2(score - top); a row that sees nothing of a chunk has -MAXFLOAT, 0 and a partial of 0
// template T, D (a multiple of 8), WINDOW (slots a row sees, itself included; 0: no limit),
//          AHEAD (whether a row sees the block's rows behind it), THREADS (a multiple of 32)
// grid     (THREADS ceil(H / Hkv R / 8 / simdgroups), chunks, Hkv), threadgroup (THREADS, 1, 1)
//
// A threadgroup has all rows of the query heads that share a KV head, 8 to a simdgroup, as long as
// THREADS suffice; so a tile of keys or values is read once, for all of them. While a tile of keys
// is multiplied the values of the same slots are on their way into registers, and the other way
// round. Slots that no row sees are not read.
//
// The bits of a row depend on nothing but what it sees and where that lies: chunks and tiles begin
// at fixed slots, and a masked key adds an exact zero.

constant constexpr int CHUNK = 256;  // slots of the smallest chunk
constant constexpr int LEVEL = 16;   // chunks of one size
#define UNROLL _Pragma("clang loop unroll(full)")  // arrays must stay in registers

// First slot and end of a chunk: 16 of 256 slots, 16 of 512, and so on. A long context has large
// chunks, so that partial sums stay a small part of its traffic, but a given slot's chunk never
// changes.
inline int2 growing_chunk(int index) {
  const int level = index / LEVEL, size = CHUNK << level;
  const int first = LEVEL * CHUNK * ((1 << level) - 1) + index % LEVEL * size;
  return int2(first, first + size);
}

// Row and first column of the two neighbouring elements of an 8 x 8 matrix that a lane holds.
inline int2 cell(int lane) {
  return int2((lane / 4 & 4) + lane / 2 % 4, (lane / 4 & 2) * 2 + lane % 2 * 2);
}

template <typename T>
inline thread vec<T, 2>& pair(thread simdgroup_matrix<T, 8, 8>& m) {
  return reinterpret_cast<thread vec<T, 2>&>(m.thread_elements());
}

// Over the four lanes that hold a row.
inline float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, 1));
  return max(x, simd_shuffle_xor(x, 8));
}

inline float row_sum(float x) {
  x += simd_shuffle_xor(x, 1);
  return x + simd_shuffle_xor(x, 8);
}

// A tile of slots on its way to threadgroup memory: each thread carries a few elements of four.
template <typename T, int D, int TILE, int THREADS>
struct Carrier {
  static constant constexpr int WIDTH = D / 4;                  // of a slot
  static constant constexpr int PITCH = WIDTH + 4 / sizeof(T);  // padded against bank conflicts
  static constant constexpr int ALL = TILE * WIDTH;
  static constant constexpr int SHARE = (ALL + THREADS - 1) / THREADS;
  vec<T, 4> taken[SHARE];

  // Reads the slots from `first` on that lie in `seen`; zeros in place of the others.
  void take(const device vec<T, 4>* slots, int first, int2 seen, int me) {
    UNROLL for (int i = 0; i < SHARE; i++) {
      const int at = i * THREADS + me, slot = first + at / WIDTH;
      const bool wanted = at < ALL && slot >= seen.x && slot < seen.y;
      taken[i] = wanted ? slots[slot * WIDTH + at % WIDTH] : vec<T, 4>(T(0));
    }
  }

  void put(threadgroup vec<T, 4>* tile, int me) const {
    UNROLL for (int i = 0; i < SHARE; i++) {
      const int at = i * THREADS + me;
      if (at < ALL) tile[at / WIDTH * PITCH + at % WIDTH] = taken[i];
    }
  }
};

//! body
constexpr int TILE = D * sizeof(T) <= 256 ? 32 : D * sizeof(T) <= 512 ? 16 : 8;  // about 8 KiB
typedef Carrier<T, D, TILE, THREADS> Tile;
constexpr int PITCH = Tile::PITCH * 4;
threadgroup vec<T, 4> keys[TILE * Tile::PITCH];
threadgroup vec<T, 4> values[TILE * Tile::PITCH];

const int rows = q_shape[2], slots = k_shape[2], kv = threadgroup_position_in_grid.z;
const int shared = q_shape[1] / k_shape[1] * rows;  // rows of the heads that share a KV head
const int me = thread_index_in_threadgroup;
const int2 at = cell(thread_index_in_simdgroup);
const int simds = THREADS / 32, group = threadgroup_position_in_grid.x;
const int row = (group * simds + int(simdgroup_index_in_threadgroup)) * 8 + at.x;
const bool busy = row - at.x < shared;  // other simdgroups only help to read

// What a row sees, and what all rows see of this chunk. The largest chunks come first.
const int behind = min(start[0] + rows, slots), mine = start[0] + row % rows;
const int2 sees = int2(WINDOW ? mine - WINDOW + 1 : 0, AHEAD ? behind : min(mine + 1, behind));
const int begin = WINDOW ? max(start[0] - WINDOW + 1, 0) : 0;
const int index = threadgroups_per_grid.y - 1 - threadgroup_position_in_grid.y;
const int first = (begin / CHUNK + index) * CHUNK;
const int2 chunk = WINDOW ? int2(first, first + CHUNK) : growing_chunk(index);
const int2 seen = int2(max(begin, chunk.x), min(behind, chunk.y));

const device vec<T, 4>* all_keys = (const device vec<T, 4>*)k + size_t(kv) * slots * Tile::WIDTH;
const device vec<T, 4>* all_values = (const device vec<T, 4>*)v + size_t(kv) * slots * Tile::WIDTH;

simdgroup_matrix<T, 8, 8> query[D / 8], key;
simdgroup_matrix<float, 8, 8> score[TILE / 8], value, sum[D / 8];
const device T* my_query = q + (size_t(kv) * shared + row) * D + at.y;
UNROLL for (int d = 0; d < D / 8; d++) {
  pair(sum[d]) = float2(0);
  pair(query[d]) = row < shared ? *(const device vec<T, 2>*)(my_query + d * 8) : vec<T, 2>(T(0));
}
float top = -MAXFLOAT, total = 0;

Tile tile;
int slot = seen.x / TILE * TILE;
tile.take(all_keys, slot, seen, me);
tile.put(keys, me);
for (; slot < seen.y; slot += TILE) {
  threadgroup_barrier(mem_flags::mem_threadgroup);  // keys are there, values are used up
  tile.take(all_values, slot, seen, me);
  if (busy) {
    UNROLL for (int j = 0; j < TILE / 8; j++) pair(score[j]) = float2(0);
    UNROLL for (int d = 0; d < D / 8; d++) {
      UNROLL for (int j = 0; j < TILE / 8; j++) {
        const threadgroup T* from = (const threadgroup T*)keys + j * 8 * PITCH + d * 8;
        simdgroup_load(key, from, PITCH, ulong2(0), true);
        simdgroup_multiply_accumulate(score[j], query[d], key, score[j]);
      }
    }
  }
  tile.put(values, me);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // values are there, keys are used up
  tile.take(all_keys, slot + TILE, seen, me);
  if (busy) {
    float peak = top;
    UNROLL for (int j = 0; j < TILE / 8; j++) {
      UNROLL for (int e = 0; e < 2; e++) {
        const int other = slot + j * 8 + at.y + e;
        const float x = pair(score[j])[e] * (scale * M_LOG2E_F);
        pair(score[j])[e] = other >= sees.x && other < sees.y ? x : -INFINITY;
        peak = max(peak, pair(score[j])[e]);
      }
    }
    peak = row_max(peak);
    const float shrink = fast::exp2(top - peak);
    top = peak;
    total *= shrink;
    UNROLL for (int d = 0; d < D / 8; d++) pair(sum[d]) *= shrink;
    UNROLL for (int j = 0; j < TILE / 8; j++) {
      pair(score[j]) = fast::exp2(pair(score[j]) - peak);
      total += pair(score[j]).x + pair(score[j]).y;
      const threadgroup T* from = (const threadgroup T*)values + (j * 8 + at.x) * PITCH + at.y;
      UNROLL for (int d = 0; d < D / 8; d++) {
        pair(value) = float2(*(const threadgroup vec<T, 2>*)(from + d * 8));
        simdgroup_multiply_accumulate(sum[d], score[j], value, sum[d]);
      }
    }
  }
  tile.put(keys, me);
}

total = row_sum(total);
if (row < shared) {
  const size_t to = size_t(index) * q_shape[1] * rows + kv * shared + row;
  UNROLL for (int d = 0; d < D / 8; d++) {
    *(device float2*)(partial + to * D + d * 8 + at.y) = pair(sum[d]);
  }
  if (at.y == 0) *(device float2*)(stats + to * 2) = float2(top, total);
}
