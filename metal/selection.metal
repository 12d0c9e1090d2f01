// selection: the largest of many values, and their log-sum-exp. For kernels that `use` it:
// head_topk and head_topk_merge. Values have to be finite: with a NaN among them the log-sum-exp is
// NaN, and the choice is of no use, though its ids are ids.

struct Candidate {
  float value;
  int id;
};
inline Candidate nobody() { return Candidate{-MAXFLOAT, 0}; }

// Lets what the lanes offer into the best, which lanes hold in descending order, KEEP of them. Of
// equal values the one that was offered first is ahead, at the same time that of the lower lane.
// All lanes take as many turns, most often none: what is not among the best costs one comparison.
template <int KEEP>
inline void offer(thread Candidate& best, Candidate offered, uint lane) {
  for (;;) {
    const float top = simd_max(offered.value);
    if (!(top > simd_shuffle(best.value, KEEP - 1))) {
      return;
    }
    const uint from = simd_min(offered.value == top ? lane : 31u);
    const int id = simd_shuffle(offered.id, from);
    const Candidate above = {simd_shuffle_up(best.value, 1), simd_shuffle_up(best.id, 1)};
    if (best.value < top) {
      best = lane > 0 && above.value < top ? above : Candidate{top, id};
    }
    if (lane == from) {
      offered.value = -MAXFLOAT;
    }
  }
}

// sum of exp(value - top), top being the largest value. That of one value is {value, 1}; -MAXFLOAT
// beside any other value counts for nothing.
struct Tally {
  float top, sum;
};
inline Tally nothing() { return Tally{-MAXFLOAT, 0}; }

// The tally of the values of both. The multiply-add is explicit, so that no instance of a kernel
// rounds in another way.
inline Tally join(Tally a, Tally b) {
  const float shrink = exp(-fabs(a.top - b.top));
  return a.top > b.top ? Tally{a.top, fma(shrink, b.sum, a.sum)}
                       : Tally{b.top, fma(shrink, a.sum, b.sum)};
}

// The tally of the values of all lanes, in each of them.
inline Tally join_lanes(Tally all) {
  for (ushort other = 1; other < 32; other *= 2) {
    all = join(all, Tally{simd_shuffle_xor(all.top, other), simd_shuffle_xor(all.sum, other)});
  }
  return all;
}
