"""Of `metal/selection.metal`, for every kernel that uses it."""

from . import Fault

FAULTS = [
    Fault("Candidate{-MAXFLOAT, 0}", "Candidate{0, 0}"),
    Fault("Candidate{-MAXFLOAT, 0}", "Candidate{-MAXFLOAT, -1}"),
    Fault("top = simd_max(offered.value);", "top = offered.value;"),
    Fault("top > simd_shuffle(best.value, KEEP - 1)", "top > simd_shuffle(best.value, 0)"),
    Fault("top > simd_shuffle(best.value, KEEP - 1)", "top > simd_shuffle(best.value, KEEP)"),
    Fault(
        "top > simd_shuffle(best.value, KEEP - 1)",
        "top > simd_shuffle(best.value, 31)",
        equivalent="candidates behind the KEEP best are kept in vain",
    ),
    Fault("top > simd_shuffle(best.value, KEEP - 1)", "top > best.value"),
    Fault(
        "simd_min(offered.value == top ? lane : 31u)", "simd_max(offered.value == top ? lane : 0u)"
    ),
    Fault("simd_min(offered.value == top ? lane : 31u)", "31u"),
    Fault("simd_shuffle(offered.id, from)", "offered.id"),
    Fault("simd_shuffle_up(best.value, 1)", "simd_shuffle_up(best.value, 2)"),
    Fault("simd_shuffle_up(best.value, 1)", "best.value"),
    Fault("simd_shuffle_up(best.id, 1)", "best.id"),
    Fault("if (best.value < top) {", "if (best.value <= top) {"),
    Fault("lane > 0 && above.value < top", "above.value < top"),
    Fault("lane > 0 && above.value < top", "lane > 0 && above.value <= top"),
    Fault("above : Candidate{top, id}", "Candidate{top, id} : above"),
    Fault("above : Candidate{top, id}", "above : Candidate{float(half(top)), id}"),
    Fault("if (lane == from) {", "if (lane >= from) {"),
    Fault("if (lane == from) {", "if (offered.value == top) {"),
    Fault("offered.value = -MAXFLOAT;", "offered.value = 0;"),
    Fault("Tally{-MAXFLOAT, 0}", "Tally{0, 0}"),
    Fault(
        "Tally{-MAXFLOAT, 0}",
        "Tally{-MAXFLOAT, 1}",
        equivalent="beside a finite value that counts for nothing",
    ),
    Fault("exp(-fabs(a.top - b.top))", "exp(a.top - b.top)"),
    Fault("exp(-fabs(a.top - b.top))", "exp(fabs(a.top - b.top))"),
    Fault("return a.top > b.top ?", "return a.top < b.top ?"),
    Fault("fma(shrink, b.sum, a.sum)", "a.sum"),
    Fault("fma(shrink, b.sum, a.sum)", "fma(shrink, a.sum, b.sum)"),
    Fault("fma(shrink, a.sum, b.sum)", "fma(1, a.sum, b.sum)"),
    Fault("fma(shrink, a.sum, b.sum)", "float(half(fma(shrink, a.sum, b.sum)))"),
    Fault("other = 1; other < 32", "other = 1; other < 16"),
    Fault("other = 1; other < 32", "other = 2; other < 32"),
    Fault("simd_shuffle_xor(all.sum, other)", "all.sum"),
    Fault("simd_shuffle_xor(all.top, other)", "all.top"),
]
