"""Which requests run their next round in one pass, and how wide it is."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from ..generation import Course
from ..loading import Pair
from ..options import AUTO
from .widths import Widths


class Group(NamedTuple):
    """Generations whose next round is one pass; a single one runs as it would alone."""

    courses: list[Course]
    width: int


class Sharing:
    """Puts generations into groups.

    Args:
        pair: what decodes them.
        together: whether there are groups at all.
    """

    def __init__(self, pair: Pair, together: bool) -> None:
        self._pair = pair
        # Several texts attend to keys and values in full.
        whole = pair.draft is None or pair.draft.kv is None
        self._together = together and pair.target.batches and whole
        self._widths: dict[int, Widths] = {}

    def shares(self, course: Course) -> bool:
        """Whether a generation can share passes: the one place that decides.

        Widths of their own in every round (`block` "auto") make rounds that fit no others, and so
        do lookup drafts; along a grammar the host has a say in between.
        """
        options = course.options
        own = (course.drafts and options.block == AUTO) or options.looks_up(course.drafts)
        return self._together and not own and options.guide is None

    def groups(self, courses: Sequence[Course]) -> list[Group]:
        """Every generation in one group, in their order by the first of each."""
        by_block: dict[int, list[Course]] = {}
        groups = []
        for course in courses:
            if self.shares(course):
                by_block.setdefault(self._block(course), []).append(course)
            else:
                groups.append(Group([course], 0))
        by_width: dict[tuple[int, int], list[Course]] = {}
        for block, members in by_block.items():
            width = self._width(block, members)
            by_width.setdefault((width, block if width > 1 else 1), []).extend(members)
        return groups + [Group(members, width) for (width, _), members in by_width.items()]

    def learn(self, group: Group, accepted: Sequence[int], seconds: float) -> None:
        """Take note of a round of several."""
        for block in {self._block(course) for course in group.courses}:
            if block in self._widths:
                self._widths[block].learn(group.width, accepted, seconds)

    def _block(self, course: Course) -> int:
        """Most tokens verified per round; 1 without a draft."""
        draft = self._pair.draft
        if draft is None or not course.drafts:
            return 1
        return course.options.width(draft.config.block_size)

    def _width(self, block: int, courses: Sequence[Course]) -> int:
        """What they verify: all of the block alone, and where a seed is to reproduce a text."""
        if block == 1 or len(courses) == 1 or any(_seeded(course) for course in courses):
            return block
        if block not in self._widths:
            costs = self._pair.costs
            self._widths[block] = Widths(block, costs.curve if costs else None)
        context = round(mean(len(course.session.ids) for course in courses))
        return self._widths[block].choose(len(courses), context)


def _seeded(course: Course) -> bool:
    """Whether which tokens are drawn must not hang on the width, which decides what is drawn."""
    return course.options.seed is not None and not course.options.sampling.greedy
