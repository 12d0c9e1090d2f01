"""Drafts that need no network, which every trained one has to beat: lookup and counting.

Both are measured on texts as they were decoded, which greedy decoding with them would repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .packing import Document

ORDERS = (5, 4, 3, 2, 1)  # tokens that predict the next, the longest known first
LOOKED_UP = (3, 2, 1)  # tokens that are looked for earlier in the text

Propose = Callable[[Sequence[int], int], list[int]]  # text so far, how many; at most that many


class Table(NamedTuple):
    """The most frequent token behind every sequence of one length: sorted hashes, and tokens."""

    hashes: NDArray[np.uint64]
    tokens: NDArray[np.int32]


class NGrams:
    """What followed the last few tokens most often in the training texts' answers."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._tables = {order: _count(documents, order) for order in ORDERS}

    def __call__(self, text: Sequence[int], count: int) -> list[int]:
        """The tokens likely behind `text`."""
        recent, drafted = list(text[-max(ORDERS) :]), []
        for _ in range(count):
            token = self._next(recent)
            if token is None:
                break
            drafted.append(token)
            recent = [*recent, token][-max(ORDERS) :]
        return drafted

    def _next(self, recent: list[int]) -> int | None:
        for order, table in self._tables.items():
            if len(recent) >= order and len(table.hashes):
                (wanted,) = _hashes(np.array(recent[-order:], np.int32), order)
                place = int(np.searchsorted(table.hashes, wanted))
                if place < len(table.hashes) and table.hashes[place] == wanted:
                    return int(table.tokens[place])
        return None


def lookup(text: Sequence[int], count: int) -> list[int]:
    """What followed the last tokens where they occurred last in the text itself."""
    for order in LOOKED_UP:
        wanted = list(text[-order:])
        for place in range(len(text) - order - 1, -1, -1):
            if list(text[place : place + order]) == wanted:
                return list(text[place + order : place + order + count])
    return []


def tokens_per_round(document: Document, propose: Propose, width: int) -> tuple[int, int]:
    """Tokens and rounds of decoding a text with these proposals, the first token apart."""
    ids = document.ids.tolist()
    anchor, rounds = document.answer, 0
    while anchor < len(ids) - 1:
        drafted = propose(ids[: anchor + 1], width - 1)
        rounds += 1
        anchor += 1 + _accepted(drafted, ids[anchor + 1 :])
    return len(ids) - 1 - document.answer, rounds


def _accepted(drafted: Sequence[int], truth: Sequence[int]) -> int:
    for i, (a, b) in enumerate(zip(drafted, truth, strict=False)):
        if a != b:
            return i
    return min(len(drafted), len(truth))


def _count(documents: Sequence[Document], order: int) -> Table:
    before, behind = [], []
    for document in documents:
        # What stands before an answer's first tokens counts, what the prompt says does not.
        ids = document.ids[max(0, document.answer - order) :]
        if len(ids) > order:
            before.append(_hashes(ids[:-1], order))
            behind.append(ids[order:])
    if not before:
        return Table(np.zeros(0, np.uint64), np.zeros(0, np.int32))
    hashes, tokens = np.concatenate(before), np.concatenate(behind)
    by_pair = np.lexsort((tokens, hashes))
    hashes, tokens = hashes[by_pair], tokens[by_pair]
    changes = (np.diff(hashes) != 0) | (np.diff(tokens) != 0)
    starts = np.flatnonzero(np.concatenate([[True], changes]))
    counts = np.diff(np.append(starts, len(hashes)))
    hashes, tokens = hashes[starts], tokens[starts]
    # Per sequence the most frequent token first, of which the first is taken.
    by_count = np.lexsort((-counts, hashes))
    unique, first = np.unique(hashes[by_count], return_index=True)
    return Table(unique, tokens[by_count][first])


def _hashes(ids: NDArray[np.int32], order: int) -> NDArray[np.uint64]:
    """A number per sequence of `order` neighbours; two sequences hardly ever share one."""
    total = np.zeros(len(ids) - order + 1, np.uint64)
    for back in range(order):
        part = ids[back : len(ids) - order + 1 + back].astype(np.uint64)
        total = (total ^ (part + np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(29)
    return total
