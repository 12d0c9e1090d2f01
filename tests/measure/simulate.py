"""Tokens per second of ways to choose widths, on recorded rounds and priced by cost curves.

    python -m tests.measure.simulate [--rounds tests/data/rounds.jsonl]

`record_rounds` says what is in the record. Besides every fixed width and plain decoding there are
the rules that others use: two sizes, switched by recent acceptance, and moving averages of
acceptance per place times costs. The oracle knows what will be accepted and takes the fastest way
through the text; `hindsight` is about what can be had without knowing it. Our policy and the
oracle are played twice, with lookup drafts (`copies`) and without. The last line of stdout is one
JSON document.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from dflash_mlx.costs import Corrected, CostCurve, widths_of
from dflash_mlx.width import Calibration, Policy

from .hindsight import hindsight
from .replay import RECORD, Text, oracle, read, seconds

BLOCK = 5
WIDTHS, COPIES = widths_of(BLOCK), widths_of(2 * BLOCK)
EARLY = 200
SIZES = (10, 12, 7, 7, 8, 7, 10, 8, 7, 8, 8)


def relative(at: dict[int, float], draft: float, host: float = 0.02) -> CostCurve:
    """A curve in units of a plain token."""
    widths = tuple(at)
    return CostCurve(widths, (1,), (tuple(at.values()),), (draft,), host)


# Passes by width, relative to one token, from published figures; linear between them. Drafts by
# their size in 16 bits against the target's. Verified with `draft` where a whole round is known.
CURVES = {
    # One 17408 x 5120 product, M4 Pro (ml-explore/mlx#4265): 0.198, 0.379, 0.580, 0.863, 0.939 ms.
    "M4 Pro, 27B in 4 bits": relative({1: 1, 5: 1.91, 8: 2.93, 12: 4.36, 16: 4.74}, 0.24),
    # The same with kernels for few rows: 0.313 and 0.53 ms.
    "M4 Pro, 27B in 4 bits, few-row kernels": relative({1: 1, 5: 1.58, 8: 1.58, 16: 2.68}, 0.24),
    # M3 Ultra, 4 bits (the same thread).
    "M3 Ultra, 4 bits": relative({1: 1, 4: 3.26, 7: 5.28, 16: 6.32}, 0.15),
    # M4 Pro, 35B-A3B in 4 bits: 3.77 tokens per round at 73.5 tokens/s (block 8), 4.17 at 61.3
    # (block 16), 86.9 plainly: rounds of 4.5 and 5.9 plain tokens.
    "M4 Pro, 35B-A3B in 4 bits": relative({1: 1, 8: 4.2, 16: 5.6}, 0.3),
    # M4 Pro, 12B in 8 bits: 5.95 tokens per round at 36.6 tokens/s (block 16), 17.3 plainly.
    "M4 Pro, 12B in 8 bits": relative({1: 1, 8: 1.6, 16: 2.6}, 0.2),
    # Where reading the weights is all, an estimate for 8 bits up to 16 rows.
    "weights read once": relative({1: 1, 16: 1.0}, 0.15),
}


class Always:
    """One width."""

    def __init__(self, width: int) -> None:
        self._width = width

    def choose(self, certainty: Sequence[float], context: int, most: int) -> int:
        return min(self._width, most)

    def rest(self) -> int:
        raise AssertionError

    def learn(self, certainty: Sequence[float], verified: int, accepted: int) -> None: ...


class TwoSizes(Always):
    """The whole block, or 4 while the last 8 rounds brought less; tried again after 64 rounds."""

    def __init__(self) -> None:
        super().__init__(BLOCK)
        self._recent: list[int] = []
        self._small = 0

    def learn(self, certainty: Sequence[float], verified: int, accepted: int) -> None:
        self._recent = [*self._recent, accepted + 1][-8:]
        mean = sum(self._recent) / len(self._recent)
        if self._width == BLOCK:
            if len(self._recent) == 8 and mean < 4:
                self._width, self._small = 4, 0
            return
        self._small += 1
        if mean >= 0.85 * 4 or self._small >= 64:
            self._width, self._recent = BLOCK, []


class MovingAverage(Always):
    """Acceptance per place, averaged over rounds, times the cost curve."""

    def __init__(self, curve: CostCurve) -> None:
        super().__init__(BLOCK)
        self._curve, self._chances = curve, [0.7] * (BLOCK - 1)

    def choose(self, certainty: Sequence[float], context: int, most: int) -> int:
        tokens = {1: 1.0}
        reached = 1.0
        for place, chance in enumerate(self._chances):
            reached *= chance
            tokens[place + 2] = tokens[place + 1] + reached
        widths = [w for w in WIDTHS if w <= most]
        return max(widths, key=lambda w: tokens[w] / self._curve.round(w, context))

    def learn(self, certainty: Sequence[float], verified: int, accepted: int) -> None:
        for place in range(min(verified, accepted + 1)):
            self._chances[place] += 0.1 * ((place < accepted) - self._chances[place])


def ours(
    texts: Sequence[Text], curve: CostCurve, end: int | None = None, copies: bool = False
) -> float:
    """Our policy, new to the draft; what it learns goes on from answer to answer."""
    calibration, costs, taken = Calibration(BLOCK - 1), Corrected(curve, still=True), 0.0
    for text in texts:
        policy = Policy(costs, WIDTHS, calibration, copies=COPIES if copies else ())
        taken += seconds(text, policy, curve, end, policy if copies else None)
    return taken


def simulate(texts: Sequence[Text], curve: CostCurve) -> dict[str, Any]:
    """Tokens per plain token's time of every rule; how late we are after the first tokens."""

    def rate(run: Callable[[Text], float]) -> float:
        return round(len_of(texts) / sum(map(run, texts)) * curve.plain(1), 3)

    def fixed(text: Text, width: int, end: int | None = None) -> float:
        if width:
            return seconds(text, Always(width), curve, end)
        return curve.plain(1) * min(end or len(text.agreed), len(text.agreed))

    def ours_rate(copies: bool) -> float:
        return round(len_of(texts) / ours(texts, curve, copies=copies) * curve.plain(1), 3)

    rates = {w: rate(lambda text, w=w: fixed(text, w)) for w in range(2, BLOCK + 1)}  # type: ignore[misc]
    fastest = rate(lambda text: oracle(text, curve, WIDTHS))
    made = hindsight(texts, curve, WIDTHS, fastest / curve.plain(1))
    early = min(sum(fixed(t, w, EARLY) for t in texts[:1]) for w in (0, *rates))
    return {
        "best_fixed": max(rates, key=rates.__getitem__),
        "fixed": rates,
        "two_sizes": rate(lambda text: seconds(text, TwoSizes(), curve)),
        "moving_average": rate(lambda text: seconds(text, MovingAverage(curve), curve)),
        "ours": ours_rate(copies=False),
        "hindsight": round(len_of(texts) / made * curve.plain(1), 3),
        "oracle": fastest,
        "ours_copies": ours_rate(copies=True),
        "oracle_copies": rate(lambda text: oracle(text, curve, WIDTHS, COPIES)),
        "late": round(ours(texts[:1], curve, EARLY) / early - 1, 3),
    }


def len_of(texts: Sequence[Text]) -> int:
    return sum(len(t.agreed) for t in texts)


def mean(ratios: Sequence[float]) -> float:
    return round(geometric_mean(ratios), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=Path, default=RECORD)
    parser.add_argument("--measured", type=Path, help="what `dflash-mlx tune --json` printed")
    args = parser.parse_args()
    curves = dict(CURVES)
    if args.measured:
        found = json.loads(args.measured.read_text())
        curves["this machine"] = CostCurve.from_dict(found["seconds"], str(args.measured))
    kinds, table = read(args.rounds), {}
    heads = (
        "",
        "best fixed",
        "block",
        "two",
        "moving",
        "ours",
        "hindsight",
        "oracle",
        "late",
        "copies",
        "oracle",
    )
    print("".join(f"{head:>{size}}" for head, size in zip(heads, SIZES, strict=True)))
    for name, curve in curves.items():
        print(name)
        table[name] = {kind: simulate(texts, curve) for kind, texts in kinds.items()}
        for kind, row in table[name].items():
            best = row["best_fixed"]
            print(
                f"  {kind:8}{row['fixed'][best]:9.2f}/{best} {row['fixed'][BLOCK]:7.2f}"
                f"{row['two_sizes']:7.2f}{row['moving_average']:8.2f}{row['ours']:7.2f}"
                f"{row['hindsight']:10.2f}{row['oracle']:8.2f}{row['late']:+7.1%}"
                f"{row['ours_copies']:8.2f}{row['oracle_copies']:8.2f}"
            )
    print(json.dumps({"curves": table, "summary": summary(table)}))


def summary(table: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Our rate by that of others, over kinds and curves."""
    rows = [row for kinds in table.values() for row in kinds.values()]
    to_fixed = [row["ours"] / row["fixed"][row["best_fixed"]] for row in rows]
    to_oracle = [row["ours"] / row["oracle"] for row in rows]
    to_hindsight = [row["ours"] / row["hindsight"] for row in rows]
    mixed_text = [kinds["mixed"] for kinds in table.values()]
    rivals = [max(*m["fixed"].values(), m["two_sizes"], m["moving_average"]) for m in mixed_text]
    ahead = [m["ours"] / rival for m, rival in zip(mixed_text, rivals, strict=True)]
    return {
        "to_best_fixed_least": round(min(to_fixed), 3),
        "to_plain_least": round(min(row["ours"] for row in rows), 3),
        "copies_to_plain_least": round(min(row["ours_copies"] for row in rows), 3),
        "copies_to_without_least": round(min(row["ours_copies"] / row["ours"] for row in rows), 3),
        "to_oracle_mean": mean(to_oracle),
        "to_oracle_least": round(min(to_oracle), 3),
        "to_hindsight_mean": mean(to_hindsight),
        "to_hindsight_least": round(min(to_hindsight), 3),
        "hindsight_to_oracle_mean": mean([row["hindsight"] / row["oracle"] for row in rows]),
        "hindsight_to_oracle_least": round(min(r["hindsight"] / r["oracle"] for r in rows), 3),
        "mixed_to_best_rule_least": round(min(ahead), 3),
        "late_most": max(row["late"] for row in rows),
    }


if __name__ == "__main__":
    main()
