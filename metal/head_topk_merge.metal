// Joins what head_topk found in the strips of the vocabulary.
//
// inputs   values, ids [M, G, KEEP], tallies [M, G, 2]: see head_topk
// outputs  top [M, KEEP] float: the largest logits of a row, descending; top_ids [M, KEEP] int, of
//          equal logits the lower id first; lse [M] float, the log-sum-exp
// template KEEP (1 to 32), SIMDS (simdgroups per threadgroup)
// grid     (32 * SIMDS, M, 1), threadgroup (32 * SIMDS, 1, 1)
//
// A threadgroup takes a row, each of its simdgroups a part of the strips. Strips and what is in
// them are looked at in ascending order, so that equal logits are offered in the order of their
// ids.

//! use selection

//! body
const uint row = threadgroup_position_in_grid.y, groups = values_shape[1];
const uint count = groups * KEEP, chunks = (count + 31) / 32;
const uint lane = thread_index_in_simdgroup, simd = simdgroup_index_in_threadgroup;

Candidate best = nobody();
for (uint chunk = simd * chunks / SIMDS; chunk < (simd + 1) * chunks / SIMDS; chunk++) {
  const uint i = 32 * chunk + lane, at = row * count + i;
  Candidate offered = nobody();
  if (i < count) {
    offered = Candidate{values[at], ids[at]};
  }
  offer<KEEP>(best, offered, lane);
}
Tally tally = nothing();
for (uint g = 32 * simd + lane; g < groups; g += 32 * SIMDS) {
  const uint at = 2 * (row * groups + g);
  tally = join(tally, Tally{tallies[at], tallies[at + 1]});
}
tally = join_lanes(tally);

threadgroup float their_values[SIMDS * KEEP], their_tallies[2 * SIMDS];
threadgroup int their_ids[SIMDS * KEEP];
if (lane < KEEP) {
  their_values[simd * KEEP + lane] = best.value;
  their_ids[simd * KEEP + lane] = best.id;
}
if (lane == 0) {
  their_tallies[2 * simd] = tally.top;
  their_tallies[2 * simd + 1] = tally.sum;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
if (simd > 0) {
  return;
}
for (int s = 1; s < SIMDS; s++) {
  Candidate offered = nobody();
  if (lane < KEEP) {
    offered = Candidate{their_values[s * KEEP + lane], their_ids[s * KEEP + lane]};
  }
  offer<KEEP>(best, offered, lane);
  tally = join(tally, Tally{their_tallies[2 * s], their_tallies[2 * s + 1]});
}
if (lane < KEEP) {
  top[row * KEEP + lane] = best.value;
  top_ids[row * KEEP + lane] = best.id;
}
if (lane == 0) {
  lse[row] = tally.top + log(tally.sum);
}
