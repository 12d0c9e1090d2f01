"""Rollback of recurrent layers, whose state forgets the rows it was made of.

A recurrent layer (a gated delta network) keeps one matrix per head and the last inputs of a short
convolution. Both are overwritten row by row, so a rejected row cannot be cut off. What can be
done is to start over from the state before the block: a pass therefore returns the state before
it, the state behind it, and the projected inputs of its rows, from which the next pass first
replays those rows that were kept. Projections and output are not computed again; a replay is the
recurrence alone, once per layer, and nothing at all where every row was kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from .kv import KVCache, Pieces, Scalar, State, Windows

# A pass over more rows is a prefill, of which every row is kept.
RECORDED = 64
Past = list[mx.array | None]  # [convolution inputs, recurrent state], None before the first row


class RecurrentView:
    """One recurrent layer's state during one pass, in the protocol of mlx-lm's `ArraysCache`.

    Attributes:
        lengths: int32 [1], how many of the pass's rows count; None where all do.
    """

    def __init__(self, past: Past, lengths: mx.array | None = None) -> None:
        self.past = list(past)
        self.lengths = lengths

    def __getitem__(self, index: int) -> mx.array | None:
        return self.past[index]

    def __setitem__(self, index: int, value: mx.array) -> None:
        self.past[index] = value

    def advance(self, rows: int) -> None:
        """mlx-lm counts down what is left of a batch; a view lives for one pass."""


class HybridCache(KVCache):
    """The cache of a model in which recurrent layers alternate with attention.

    `windows` and the attention state list the attention layers only. In addition a pass gets
    "past", one `Past` per recurrent layer, with "rows" and "kept" where rows of the last pass have
    to be replayed; it returns "passes", per recurrent layer its "before", "after" (None where only
    a replay makes it) and "rows".
    """

    def __init__(self, windows: Windows, recurrent: int) -> None:
        self._recurrent = recurrent
        self._passes: list[dict[str, Any]] = []
        super().__init__(windows)
        self._next = (0, 0)

    def clear(self) -> None:
        """As for attention."""
        super().clear()
        self._forget()

    def begin(self, start: int, rows: int, fixed: bool) -> State:
        """As for attention; adds what the recurrent layers start from."""
        state = super().begin(start, rows, fixed)
        kept = start - self._first
        self._next = (start, rows)
        if kept == self._rows and self._known_behind:
            return state | {"past": [p["after"] for p in self._passes]}
        state = state | {"past": [p["before"] for p in self._passes]}
        if kept == 0:
            return state
        assert self._replays(kept), "trim() comes first"
        counted: Scalar = mx.array(kept, mx.int32) if fixed else kept
        return state | {"rows": [p["rows"] for p in self._passes], "kept": counted}

    def update(self, state: State) -> None:
        """Take over what the pass has written."""
        super().update(state)
        # Together: the passes and the rows they stand for.
        self._passes, (self._first, self._rows) = state["passes"], self._next

    def trim(self, length: int) -> int:
        """As for attention, but a recurrent layer only reaches back into its last pass."""
        length = min(length, self.length)
        kept = length - self._first
        if kept not in (0, self._rows) and not self._replays(kept):
            length = 0
        length = super().trim(length)
        if length == 0:
            self._forget()
        return length

    def resume(
        self, length: int, rows: Sequence[Pieces], past: Sequence[Sequence[mx.array | None]] = ()
    ) -> None:
        """As for attention."""
        assert len(past) == self._recurrent
        super().resume(length, rows)
        self._passes = [{"before": list(p), "after": list(p), "rows": None} for p in past]
        self._first, self._rows = length, 0

    def stretch(self, length: int) -> None:
        """As for attention; the state is that of the last pass."""
        super().stretch(length)
        self._first = length - self._rows

    def select(self, rows: mx.array) -> None:
        """As for attention."""
        super().select(rows)
        self._passes = tree_map(lambda a: a if a is None else a[rows], self._passes)

    def arrays(self) -> list[mx.array]:
        """What must be evaluated for the last pass to be written."""
        when = "after" if self._known_behind else "before"
        past = [a for p in self._passes for a in p[when] if a is not None]
        return super().arrays() + past

    @property
    def _known_behind(self) -> bool:
        """Whether the last pass returned the state behind all of its rows."""
        return all(p["after"] is not None for p in self._passes)

    def _replays(self, kept: int) -> bool:
        most = self._rows - self._known_behind
        return 0 < kept <= most and self._rows <= RECORDED

    def _forget(self) -> None:
        self._passes = [
            {"before": [None, None], "after": [None, None], "rows": None}
            for _ in range(self._recurrent)
        ]
        self._first = self._rows = 0  # position of the last pass, and rows it had
