"""What a data set holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CodeTask:
    """A program to be completed and tested."""


@dataclass(frozen=True)
class Problem:
    """One conversation to be answered."""

    id: str
    turns: tuple[str, ...]
    answer: str | None = None
    code: CodeTask | None = None


@dataclass(frozen=True)
class Problems:
    """Problems of one set, as they are run."""

    dataset: str
    items: tuple[Problem, ...]
    source: str
    sample: bool
    fingerprint: str
