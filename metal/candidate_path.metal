// The whole walk of DFlash 2's selector in one dispatch: what follows each candidate is chosen for
// all of them at once, then the path follows the choices.
//
// inputs   scores [n, k, k] float: [i, a, b] is candidate b at place i behind candidate a at i - 1
//          (behind the anchor at 0); ids [n, k] int; noise [n, k] float, read only if Sampled
// outputs  drafted [n] int: ids on the path; places [n] int: where they are among the candidates;
//          rows [n, k] float: the scores that each was chosen from
// template K, Sampled: whether noise is added before the largest is chosen; Slots: n k at least
// grid     (threads, 1, 1), threadgroup (threads, 1, 1): one threadgroup
//
// A walk that read scores at each step would wait for device memory n times, one after the other.
// Here the steps that wait for each other only read threadgroup memory. Of equal scores the first
// is chosen, as argmax does. A row of NaN chooses place 0, so no place is ever out of bounds.

//! body
threadgroup ushort choices[Slots];
const int n = scores_shape[0];
const int thread_id = thread_position_in_threadgroup.x;
const int threads = threads_per_threadgroup.x;

for (int row = thread_id; row < n * K; row += threads) {
  float best = -INFINITY;
  int choice = 0;
  for (int b = 0; b < K; b++) {
    float score = scores[row * K + b];
    if (Sampled) {
      score += noise[row / K * K + b];
    }
    if (score > best) {
      best = score;
      choice = b;
    }
  }
  choices[row] = choice;
}
threadgroup_barrier(mem_flags::mem_threadgroup);

// Every thread walks: it is as fast as one alone, and all know the path without another barrier.
int before = 0;
for (int i = 0; i < n; i++) {
  const int place = choices[i * K + before];
  if (thread_id == 0) {
    drafted[i] = ids[i * K + place];
    places[i] = place;
  }
  for (int b = thread_id; b < K; b += threads) {
    rows[i * K + b] = scores[(i * K + before) * K + b];
  }
  before = place;
}
