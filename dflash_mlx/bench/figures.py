"""What the answers of one arm come to, beside the baseline's; pure functions of records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from .records import Answer, Drafting, Key
from .statistics import Interval, Paired, mcnemar, median_interval, wilson


@dataclass(frozen=True)
class Drafts:
    """What became of the drafted tokens.

    Attributes:
        tau_mean: tokens per round of every prompt, averaged over prompts.
        tau_pooled: tokens of all rounds of all prompts, per round.
        accepted_share: accepted tokens of all drafted ones.
        by_position: for the first, second, ... drafted token, how often it was accepted, over the
            rounds that drafted it; rounds in which the text ended are left out.
        histogram: rounds that accepted 0, 1, 2, ... tokens.
    """

    rounds: int
    drafted: int
    accepted: int
    tau_mean: float
    tau_pooled: float
    accepted_share: float
    by_position: tuple[float, ...]
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class Same:
    """How many answers are the baseline's, and the first one that is not."""

    identical: int
    tie: int
    bug: int
    example: str | None = None

    @property
    def compared(self) -> int:
        """How many there are."""
        return self.identical + self.tie + self.bug


@dataclass(frozen=True)
class Figures:
    """One arm of one pair on one set.

    Attributes:
        speedups: by problem, decode speed by that of the baseline for the same prompt; the median
            over repeats.
        speedup: median over prompts; None for the baseline itself, and where a greedy text
            differs beyond ties: what says something else is not a faster way to say the same.
        without_loops: the same over the prompts whose texts do not repeat themselves.
        decode_tok_s, prefill_tok_s, ttft_s: medians over prompts.
        peak_bytes: the most of any answer.
        same: None where nothing was compared.
        accuracy: of the first pass; None where nothing was scored.
        paired: the baseline's right answers beside this arm's.
        degenerate: answers that repeat themselves.
        cut: answers that the token limit ended.
        failed: prompts without an answer.
    """

    pair: str
    dataset: str
    arm: str
    prompts: int
    answers: int
    speedups: Mapping[str, float]
    speedup: Interval | None
    without_loops: Interval | None
    decode_tok_s: Interval | None
    prefill_tok_s: Interval | None
    ttft_s: Interval | None
    peak_bytes: int
    drafts: Drafts | None
    same: Same | None
    accuracy: Interval | None
    paired: Paired | None
    degenerate: int
    cut: int
    failed: int

    @property
    def differs(self) -> bool:
        """Whether a text is another than the baseline's for no reason that rounding gives."""
        return self.same is not None and self.same.bug > 0

    def as_dict(self) -> dict[str, Any]:
        """In the form of JSON."""
        value = asdict(self)
        for name, item in vars(self).items():
            if isinstance(item, Interval | Paired):
                value[name] = item._asdict()
        return value


def all_figures(answers: Sequence[Answer]) -> list[Figures]:
    """Of every arm of every pair on every set, in the order in which they come."""
    groups: dict[tuple[str, str], dict[str, list[Answer]]] = {}
    for answer in answers:
        arms = groups.setdefault((answer.pair, answer.dataset), {})
        arms.setdefault(answer.arm, []).append(answer)
    return [
        figures(arm, next(iter(arms.values()))) for arms in groups.values() for arm in arms.values()
    ]


def figures(answers: Sequence[Answer], base: Sequence[Answer]) -> Figures:
    """Of one arm beside the baseline; both are the same for the baseline itself."""
    first, itself = answers[0], answers[0].arm == base[0].arm
    good = [answer for answer in answers if not answer.failed]
    same = _same(good)
    ratios = {} if itself else speedups(good, base)
    looping = {answer.problem for answer in (*good, *base) if answer.loops}
    differs = same is not None and same.bug > 0
    calm = [ratio for problem, ratio in ratios.items() if problem not in looping]
    return Figures(
        pair=first.pair,
        dataset=first.dataset,
        arm=first.arm,
        prompts=len({answer.problem for answer in good}),
        answers=len(good),
        speedups=ratios,
        speedup=None if differs else median_interval(list(ratios.values())),
        without_loops=None if differs else median_interval(calm),
        decode_tok_s=_over_prompts(good, [a.decode_tok_s for a in good]),
        prefill_tok_s=_over_prompts(good, [a.prefill_tok_s for a in good]),
        ttft_s=_over_prompts(good, [a.turns[0].ttft_s for a in good]),
        peak_bytes=max((turn.peak_bytes for a in good for turn in a.turns), default=0),
        drafts=drafts([a.rounds for a in good]),
        same=same,
        accuracy=_accuracy(good),
        paired=None if itself else _paired(base, good),
        degenerate=sum(a.loops for a in good),
        cut=sum(a.cut for a in good),
        failed=len(answers) - len(good),
    )


def speedups(answers: Sequence[Answer], base: Sequence[Answer]) -> dict[str, float]:
    """By problem, the median over repeats of the ratio of decode speeds."""
    rates: dict[Key, float | None] = {answer.key: answer.decode_tok_s for answer in base}
    found: dict[str, list[float]] = {}
    for answer in answers:
        old, new = rates.get(answer.key), answer.decode_tok_s
        if old and new:
            found.setdefault(answer.problem, []).append(new / old)
    return {problem: median(ratios) for problem, ratios in found.items()}


def drafts(prompts: Iterable[Sequence[Drafting]]) -> Drafts | None:
    """From the rounds of every answer; None where nothing was drafted."""
    each = [rounds for rounds in prompts if rounds]
    pooled = [round_ for rounds in each for round_ in rounds]
    if not pooled:
        return None
    drafted, accepted = sum(r.drafted for r in pooled), sum(r.accepted for r in pooled)
    return Drafts(
        rounds=len(pooled),
        drafted=drafted,
        accepted=accepted,
        tau_mean=fmean(tau(rounds) for rounds in each),
        tau_pooled=tau(pooled),
        accepted_share=accepted / drafted,
        by_position=by_position(pooled),
        histogram=histogram(pooled),
    )


def tau(rounds: Sequence[Drafting]) -> float:
    """Tokens per round, the bonus included."""
    return fmean(round_.kept for round_ in rounds)


def by_position(rounds: Sequence[Drafting]) -> tuple[float, ...]:
    """How often the drafted token of every place was accepted, where it was drafted."""
    whole = [round_ for round_ in rounds if round_.whole]
    shares = []
    for place in range(1, max((r.drafted for r in whole), default=0) + 1):
        there = [r for r in whole if r.drafted >= place]
        shares.append(sum(r.accepted >= place for r in there) / len(there))
    return tuple(shares)


def histogram(rounds: Sequence[Drafting]) -> tuple[int, ...]:
    """How many rounds accepted 0, 1, 2, ... tokens."""
    accepted = [round_.accepted for round_ in rounds]
    return tuple(accepted.count(n) for n in range(max(accepted, default=-1) + 1))


def _over_prompts(answers: Sequence[Answer], values: Sequence[float | None]) -> Interval | None:
    """The median over prompts of the medians over repeats."""
    found: dict[str, list[float]] = {}
    for answer, value in zip(answers, values, strict=True):
        if value is not None:
            found.setdefault(answer.problem, []).append(value)
    return median_interval([median(each) for each in found.values()])


def _same(answers: Sequence[Answer]) -> Same | None:
    verdicts = [answer.verdict for answer in answers if answer.verdict]
    if not verdicts:
        return None
    worst = sorted((a for a in answers if a.difference), key=lambda a: a.verdict != "bug")
    example = f"{worst[0].problem}, {worst[0].difference}" if worst else None
    identical, tie, bug = (verdicts.count(kind) for kind in ("identical", "tie", "bug"))
    return Same(identical, tie, bug, example)


def _scores(answers: Sequence[Answer]) -> dict[str, bool]:
    """By problem: greedy repeats say the same again, and sampled ones are no new problems."""
    return {a.problem: a.correct for a in answers if a.repeat == 0 and a.correct is not None}


def _accuracy(answers: Sequence[Answer]) -> Interval | None:
    scores = _scores(answers)
    return wilson(sum(scores.values()), len(scores))


def _paired(base: Sequence[Answer], answers: Sequence[Answer]) -> Paired | None:
    old, new = _scores(base), _scores(answers)
    both = [problem for problem in new if problem in old]
    return mcnemar([old[p] for p in both], [new[p] for p in both]) if both else None
