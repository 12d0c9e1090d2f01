"""Whether a text repeats itself: a loop is easily drafted, and would pass for speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_UNIT = 32
GRAM = 4
LOOP = 24  # tokens of a loop that counts, and
LOOP_SHARE = 0.25  # its share of the text
DISTINCT = 0.5  # of the 4-grams, less is a text that goes in circles


@dataclass(frozen=True)
class Repetition:
    """How much of a text is repetition.

    Attributes:
        tokens: of the text.
        loop: tokens of the longest stretch in which one piece follows itself, the first included.
        distinct: share of 4-grams that are the first of their kind; 1 for shorter texts.
    """

    tokens: int
    loop: int
    distinct: float

    @property
    def degenerate(self) -> bool:
        """Whether the text is marked."""
        looping = self.loop >= max(LOOP, LOOP_SHARE * self.tokens)
        return looping or (self.tokens >= 2 * LOOP and self.distinct < DISTINCT)


def repetition(ids: Sequence[int]) -> Repetition:
    """Measure a text of tokens."""
    loop = max((_loop(ids, unit) for unit in range(1, LONGEST_UNIT + 1)), default=0)
    grams = [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]
    return Repetition(len(ids), loop, len(set(grams)) / len(grams) if grams else 1.0)


def _loop(ids: Sequence[int], unit: int) -> int:
    """The longest stretch of period `unit`; 0 where the piece does not come twice in a row."""
    longest = run = 0
    for i in range(unit, len(ids)):
        run = run + 1 if ids[i] == ids[i - unit] else 0
        longest = max(longest, run)
    return longest + unit if longest >= unit else 0
