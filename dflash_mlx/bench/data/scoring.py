"""Whether an answer is right."""

from __future__ import annotations

import re

from .problems import Problem, Problems


def scored(problems: Problems) -> bool:
    """Whether answers can be right or wrong."""
    return any(p.answer is not None for p in problems.items)


def needs_code(problems: Problems) -> bool:
    """Whether scoring runs code that the model wrote."""
    return any(p.code is not None for p in problems.items)


def score(dataset: str, problem: Problem, answer: str, *, run_code: bool = False) -> bool | None:
    """Whether the answer is right; None where that is not known."""
    if problem.answer is None:
        return None
    numbers = re.findall(r"-?\d+", answer)
    return bool(numbers) and numbers[-1] == problem.answer
