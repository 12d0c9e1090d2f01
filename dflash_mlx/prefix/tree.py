"""What is kept for which ids: a tree of branches, with marks on them. No array is touched here.

A branch holds ids from `start` on. It leaves its parent where the ids differ, which may be in the
middle of the parent, so that a branch never changes once it is made. A mark holds no ids; it
stands at a position of a branch.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx

Arrays = dict[str, mx.array]


@dataclass(eq=False)
class Entry:
    """A branch, or a mark if it has no ids.

    Attributes:
        parent: what it leaves at position `start`; None for the root alone.
        ids: its own.
        arrays: by name; None where only a file has them.
        nbytes: of the arrays.
        used: when it was needed last, on the cache's clock.
        found: whether a request has begun with it.
        reach: for a mark, the shortest length that can be gone on from with it.
    """

    parent: Entry | None
    start: int
    ids: tuple[int, ...]
    arrays: Arrays | None = None
    nbytes: int = 0
    used: int = 0
    found: bool = False
    reach: int = 0
    branches: dict[tuple[int, int], Entry] = field(default_factory=dict)  # by start and first id
    marks: dict[int, Entry] = field(default_factory=dict)  # by position
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = key_of(self.parent.key, self.start, self.ids) if self.parent else ROOT

    @property
    def end(self) -> int:
        """The position behind its last id; a mark's own."""
        return self.start + len(self.ids)

    @property
    def children(self) -> list[Entry]:
        """What leaves it."""
        return [*self.branches.values(), *self.marks.values()]


ROOT = "0" * 32


def key_of(parent: str, start: int, ids: Sequence[int]) -> str:
    """A name of 32 hex digits for the ids from the first one on to the end of `ids`."""
    text = f"{parent} {start} ".encode() + array("q", ids).tobytes()
    return hashlib.sha256(text).hexdigest()[:32]


class Match(NamedTuple):
    """How far ids are known.

    Attributes:
        path: branches from the root on.
        length: ids that they have in common with what was asked for.
    """

    path: list[Entry]
    length: int

    def marks(self) -> Iterator[tuple[int, Entry]]:
        """All marks on the path, with the number of ids before them that were asked for."""
        ends = [branch.start for branch in self.path[1:]] + [self.length]
        for branch, end in zip(self.path, ends, strict=True):
            yield from ((min(mark.start, end), mark) for mark in branch.marks.values())


class Tree:
    """All entries of one pair.

    Attributes:
        size: how many there are.
    """

    def __init__(self) -> None:
        self.root, self.size = Entry(None, 0, ()), 0

    def __iter__(self) -> Iterator[Entry]:
        """Every entry, parents first."""
        waiting = [self.root]
        while waiting:
            children = waiting.pop().children
            yield from children
            waiting += children

    def match(self, ids: Sequence[int]) -> Match:
        """The branches that `ids` begin with."""
        path, length = [self.root], 0
        while length < len(ids):
            branch = path[-1].branches.get((length, ids[length]))
            if branch is None:
                break
            path.append(branch)
            length += common(branch.ids, ids[length : branch.end])
        return Match(path, length)

    def add(self, parent: Entry, start: int, ids: Sequence[int]) -> Entry:
        """A new branch, or a new mark if there are no ids; the old one if there is one."""
        entry = Entry(parent, start, tuple(ids))
        kept = (
            parent.branches.setdefault((start, ids[0]), entry)
            if ids
            else parent.marks.setdefault(start, entry)
        )
        self.size += kept is entry
        return kept

    def remove(self, entry: Entry) -> list[Entry]:
        """Forget an entry and all that leaves it; returns them, children first."""
        assert entry.parent is not None
        if entry.ids:
            del entry.parent.branches[entry.start, entry.ids[0]]
        else:
            del entry.parent.marks[entry.start]
        gone = [entry]
        for one in gone:
            gone += one.children
        self.size -= len(gone)
        return gone[::-1]

    def oldest(self) -> Entry | None:
        """What has gone unused for longest, of those in memory that nothing in memory leaves."""
        held = [e for e in self if e.arrays is not None]
        inner = {e.parent for e in held}
        return min(
            (e for e in held if e not in inner), key=lambda e: (e.used, -e.start), default=None
        )


def longest(match: Match, limit: int, marked: bool) -> tuple[int, Entry | None]:
    """How many of at most `limit` ids can be gone on from, and by which mark.

    Args:
        match: where the ids lead.
        limit: at most so many.
        marked: whether it takes a mark.
    """
    if not marked:
        return min(limit, match.length), None
    fit = [(min(end, limit), mark) for end, mark in match.marks()]
    best = [(length, mark) for length, mark in fit if mark.reach <= length]
    return max(best, key=lambda one: (one[0], -one[1].start), default=(0, None))


def thinned(match: Match, places: Sequence[int] = ()) -> list[Entry]:
    """Marks to drop of those that nobody has found yet, but for those at certain `places`.

    No gap that this leaves is wider than what lies behind it: marks are close to each other near
    the end, where most prompts leave, and their number grows with the logarithm of the length.
    """
    marks = [mark for end, mark in match.marks() if mark.start == end]
    marks.sort(key=lambda mark: mark.start)
    last, dropped = 0, []
    for mark, after in pairwise(marks):
        wanted = mark.found or mark.start in places
        if not wanted and after.start - last <= match.length - after.start:
            dropped.append(mark)
        else:
            last = mark.start
    return dropped


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    if tuple(a) == tuple(b):
        return len(a)
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
