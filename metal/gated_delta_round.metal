// One pass over the state of a gated delta layer: rows kept of the last round are replayed, then
// the rows of the new block follow. A row does
//
//     S <- g S;  S <- S + (v - S k) beta k^T;  y = S q        S is [Dv, Dk], one matrix per head
//
// inputs   state [B, Hv, Dv, Dk] float: before the last round; kept [1] int: rows to replay
//          k_old [B, R, Hk, Dk], v_old [B, R, Hv, Dv], g_old and beta_old [B, R, Hv]
//          q and k_new [B, T, Hk, Dk], v_new [B, T, Hv, Dv], g_new and beta_new [B, T, Hv]
// outputs  y [B, T, Hv, Dv]; committed [B, Hv, Dv, Dk] float: behind the replay;
//          behind: as committed, behind the block; [1] and zero if not WithBehind
// template T: type of y, Dk, WithBehind
// grid     (4 Dv, B Hv, 1), threadgroup (any multiple of 32, 1, 1)
//
// Rows of S do not know each other. Four lanes keep one in registers, read once and written once,
// whatever R and T are. There is no threadgroup memory and no barrier. Multiply-adds are explicit,
// so that a replayed row leaves the same bits as the row did when it was verified.

constant constexpr int LANES = 4;  // to a row of S
constant constexpr int RUN = 4;    // neighbouring elements of one lane: together a line of 64 bytes

// Place in the row of the i-th element of a lane.
inline int place(int i, int lane) {
  return (i / RUN * LANES + lane) * RUN + i % RUN;
}

template <int Dk>
inline bool inside(int i, int lane) {
  return Dk % (LANES * RUN) == 0 || place(i, lane) < Dk;
}

// One lane's part of a vector; zeros behind its end. P may be a device or a constant pointer.
template <int Dk, int N, typename P>
inline void load(thread float* part, P from, int lane) {
  for (int i = 0; i < N; i++) {
    part[i] = inside<Dk>(i, lane) ? float(from[place(i, lane)]) : 0.0f;
  }
}

template <int Dk, int N>
inline void store(device float* to, const thread float* part, int lane) {
  for (int i = 0; i < N; i++) {
    if (inside<Dk>(i, lane)) {
      to[place(i, lane)] = part[i];
    }
  }
}

// The sum over the four lanes of a row, the same in each.
inline float over_lanes(float x) {
  x += simd_shuffle_xor(x, 1);
  return x + simd_shuffle_xor(x, 2);
}

template <int N>
inline float dot_product(const thread float* a, const thread float* b) {
  float sum = 0.0f;
  for (int i = 0; i < N; i++) {
    sum = fma(a[i], b[i], sum);
  }
  return over_lanes(sum);
}

// One row of the recurrence; v is the one element of its vector that this row of S is about.
template <int N>
inline void advance(thread float* s, const thread float* k, float v, float g, float beta) {
  for (int i = 0; i < N; i++) {
    s[i] *= g;
  }
  float delta = (v - dot_product<N>(s, k)) * beta;
  for (int i = 0; i < N; i++) {
    s[i] = fma(k[i], delta, s[i]);
  }
}

//! body
constexpr int N = (Dk + LANES * RUN - 1) / (LANES * RUN) * RUN;
const int key_heads = k_new_shape[2], heads = v_new_shape[2], Dv = v_new_shape[3];
const int rows_old = k_old_shape[1], rows_new = k_new_shape[1];

const int lane = thread_position_in_grid.x % LANES;
const int dv = thread_position_in_grid.x / LANES;
const int batch = thread_position_in_grid.y / heads;
const int head = thread_position_in_grid.y % heads;
const int key_head = head / (heads / key_heads);
const size_t at = (size_t(thread_position_in_grid.y) * Dv + dv) * Dk;

float s[N], k[N], q_part[N];
load<Dk, N>(s, state + at, lane);

const int count = min(int(kept[0]), rows_old);
for (int t = 0; t < count; t++) {
  const int row = batch * rows_old + t, one = row * heads + head;
  load<Dk, N>(k, k_old + (row * key_heads + key_head) * Dk, lane);
  advance<N>(s, k, float(v_old[one * Dv + dv]), float(g_old[one]), float(beta_old[one]));
}
store<Dk, N>(committed + at, s, lane);

for (int t = 0; t < rows_new; t++) {
  const int row = batch * rows_new + t, one = row * heads + head;
  const int key = (row * key_heads + key_head) * Dk;
  load<Dk, N>(k, k_new + key, lane);
  load<Dk, N>(q_part, q + key, lane);
  advance<N>(s, k, float(v_new[one * Dv + dv]), float(g_new[one]), float(beta_new[one]));
  const float out = dot_product<N>(s, q_part);
  if (lane == 0) {
    y[one * Dv + dv] = T(out);
  }
}

if (WithBehind) {
  store<Dk, N>(behind + at, s, lane);
} else if (thread_position_in_grid.x == 0 && thread_position_in_grid.y == 0) {
  behind[0] = 0.0f;
}
