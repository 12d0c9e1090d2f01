"""The sets and how they are read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError
from .problems import Problem, Problems


@dataclass(frozen=True)
class DataSet:
    """One set."""

    name: str
    title: str
    source: str
    licence: str
    kind: str


SETS = (
    DataSet("gsm8k", "Grade-school mathematics", "openai/gsm8k", "MIT", "math"),
    DataSet("mt-bench", "Two-turn conversations", "lmsys", "Apache-2.0", "chat"),
)
SUMS = [(n, n + 3, 2 * n) for n in range(3, 19)]


def find(name: str) -> DataSet:
    """The set of that name."""
    for known in SETS:
        if known.name == name:
            return known
    raise UsageError(f"no data set {name!r}; known: {', '.join(s.name for s in SETS)}")


def load_problems(
    name: str,
    *,
    offline: bool = False,
    limit: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Problems:
    """Problems of a set."""
    second = ("Now explain the same to a child.",) if find(name).name == "mt-bench" else ()
    items = tuple(
        Problem(
            f"{name}-{i}",
            (
                f"A farmer has {a} boxes of {b} apples and sells {c} of them. How many apples are "
                "left? Think step by step.",
                *second,
            ),
            str(a * b - c),
        )
        for i, (a, b, c) in enumerate(SUMS)
    )[:limit]
    return _problems(name, items, "stub")


def read_problems(path: Path, *, limit: int | None = None, seed: int = 0) -> Problems:
    """Problems of a file."""
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    items = tuple(Problem(str(i), (row["prompt"],)) for i, row in enumerate(rows))[:limit]
    return _problems(path.name, items, str(path))


def _problems(name: str, items: tuple[Problem, ...], source: str) -> Problems:
    mark = hashlib.sha256(repr(items).encode()).hexdigest()[:16]
    return Problems(name, items, source, True, mark)
