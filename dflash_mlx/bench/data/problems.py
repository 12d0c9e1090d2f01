"""What a benchmark asks a model."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ...errors import UsageError


@dataclass(frozen=True)
class CodeTask:
    """How an answer that is a program gets tested.

    Attributes:
        prompt: what the answer continues; empty where it stands by itself.
        tests: source that runs after the answer and raises where that is wrong.
        entry_point: the function that the tests call.
    """

    prompt: str
    tests: str
    entry_point: str


@dataclass(frozen=True)
class Problem:
    """One conversation.

    Attributes:
        id: stable, such as "gsm8k/12".
        turns: the user's messages, in order.
        answer: the right answer, where answers are scored by comparison.
        code: the tests, where answers are scored by running them.
    """

    id: str
    turns: tuple[str, ...]
    answer: str | None = None
    code: CodeTask | None = None


@dataclass(frozen=True)
class Problems:
    """What was taken of a data set.

    Attributes:
        dataset: its name, or the stem of a file of one's own.
        source: where the rows came from, in words.
        sample: whether they are the sample written for this project and not the data set itself.
        fingerprint: the same for the same problems, in whatever order.
    """

    dataset: str
    items: tuple[Problem, ...]
    source: str
    sample: bool
    fingerprint: str


def problems(
    dataset: str, items: Sequence[Problem], source: str, *, sample: bool = False
) -> Problems:
    """Items with their fingerprint."""
    return Problems(dataset, tuple(items), source, sample, fingerprint(items))


def fingerprint(items: Sequence[Problem]) -> str:
    """A SHA-256 over everything in the items."""
    ordered = [asdict(item) for item in sorted(items, key=lambda item: item.id)]
    return hashlib.sha256(json.dumps(ordered, sort_keys=True).encode()).hexdigest()


def chosen(items: Sequence[Problem], limit: int | None, seed: int) -> list[Problem]:
    """The items in an order that the seed decides, at most `limit` of them.

    So whatever is measured before an interruption is a fair sample, and a smaller limit takes a
    part of what a larger one does. Seed 42 takes what the benchmark of `dflash` 0.1.0 takes.

    Raises UsageError for a limit under 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}, expected 1 or more")
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    return [items[place] for place in order[:limit]]
