"""Which rows of its context a layer keeps where that is less than all of them."""

from __future__ import annotations

from typing import NamedTuple

from .errors import UsageError

SINK = 4  # rows at the start that softmax leans on (arXiv 2309.17453, section 3.1)
FEWEST = 64


class Span(NamedTuple):
    """The first `sink` positions, and those less than `recent` positions back."""

    recent: int
    sink: int


def span_of(recent: int, sink: int) -> Span:
    """A checked span; raises UsageError."""
    if recent < FEWEST:
        raise UsageError(f"draft window is {recent}, expected {FEWEST} or more")
    if not 0 <= sink < recent:
        raise UsageError(f"draft sink is {sink}, expected 0 or more, and less than the window")
    return Span(recent, sink)
