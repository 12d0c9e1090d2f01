"""Two runs beside each other, prompt by prompt: what changed between them, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..errors import UsageError
from .recording import Recording
from .records import Answer
from .statistics import Interval, Paired, mcnemar, median_interval


@dataclass(frozen=True)
class Change:
    """One arm in both runs, over the prompts that both have answered.

    Attributes:
        decode, ttft, tau: medians over prompts of new by old; None where one has none.
        same: prompts with the same ids in both.
        paired: right answers of the old run beside the new one's.
    """

    pair: str
    dataset: str
    arm: str
    prompts: int
    decode: Interval | None
    ttft: Interval | None
    tau: Interval | None
    same: int
    paired: Paired | None

    def as_dict(self) -> dict[str, Any]:
        """In the form of JSON."""
        return {
            name: value._asdict() if isinstance(value, Interval | Paired) else value
            for name, value in vars(self).items()
        }


def changes(old: Recording, new: Recording) -> list[Change]:
    """Every arm that both runs have, on sets whose problems are the same.

    Where each run has one pair, their names need not be the same.

    Raises:
        UsageError: they share nothing.
    """
    prints = [{each["name"]: each["fingerprint"] for each in r.sets} for r in (old, new)]
    shared = {name for name, mark in prints[0].items() if prints[1].get(name) == mark}
    lone = len(old.pairs) == len(new.pairs) == 1
    groups = [_groups(r.answers, shared, lone) for r in (old, new)]
    found = [
        _change(groups[0][key], answers) for key, answers in groups[1].items() if key in groups[0]
    ]
    if not found:
        raise UsageError(
            "the two runs share no arm on the same problems; compare runs of the same sets "
            "with the same --limit, --seed and --block"
        )
    return found


Group = tuple[str, str, str]


def _groups(answers: Sequence[Answer], shared: set[str], lone: bool) -> dict[Group, list[Answer]]:
    groups: dict[Group, list[Answer]] = {}
    for answer in answers:
        if answer.dataset in shared and not answer.failed:
            key = ("" if lone else answer.pair, answer.dataset, answer.arm)
            groups.setdefault(key, []).append(answer)
    return groups


def _change(old: Sequence[Answer], new: Sequence[Answer]) -> Change:
    before, after = _by_problem(old), _by_problem(new)
    both = [problem for problem in after if problem in before]

    def ratio(figure: Callable[[Answer], float | None]) -> Interval | None:
        pairs = [(_middle(before[p], figure), _middle(after[p], figure)) for p in both]
        return median_interval([b / a for a, b in pairs if a and b])

    scores = [
        (before[p][0].correct, after[p][0].correct)
        for p in both
        if before[p][0].correct is not None and after[p][0].correct is not None
    ]
    return Change(
        pair=new[0].pair,
        dataset=new[0].dataset,
        arm=new[0].arm,
        prompts=len(both),
        decode=ratio(lambda a: a.decode_tok_s),
        ttft=ratio(lambda a: a.turns[0].ttft_s),
        tau=ratio(lambda a: sum(r.kept for r in a.rounds) / len(a.rounds) if a.rounds else None),
        same=sum(_ids(before[p][0]) == _ids(after[p][0]) for p in both),
        paired=mcnemar([bool(a) for a, _ in scores], [bool(b) for _, b in scores])
        if scores
        else None,
    )


def _by_problem(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.problem, []).append(answer)
    return found


def _middle(answers: Sequence[Answer], figure: Callable[[Answer], float | None]) -> float | None:
    """The median over repeats."""
    values = [value for value in map(figure, answers) if value]
    return median(values) if values else None


def _ids(answer: Answer) -> list[tuple[int, ...]]:
    return [turn.ids for turn in answer.turns]
