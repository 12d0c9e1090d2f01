"""Which tokens compete in the loss: all of the target's, some drawn for each pack, or a fixed few.

The full head makes most of the work of a small draft. With `negatives`, a pack's own labels
compete with each other and with that many tokens drawn at random, which is cheaper and slightly
easier than the truth: accuracies measured so are optimistic. A fixed list is the draft's own
vocabulary, of which it can never leave.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..targets.base import Target
from .packing import Bools, Ints, Pack


@dataclass(frozen=True, eq=False)
class DraftHead:
    """A head over some tokens.

    Attributes:
        ids: int32 [size], ascending; None for all.
        rows: the head's rows of these [size, hidden_size].
    """

    target: Target
    ids: Ints | None = None
    rows: mx.array | None = None

    @property
    def size(self) -> int:
        """How many tokens compete."""
        return self.target.vocab_size if self.ids is None else len(self.ids)

    def __call__(self, hidden: mx.array) -> mx.array:
        """Hidden states [N, b - 1, hidden_size] to bare logits [N, b - 1, size]."""
        hidden = hidden.astype(self.target.dtype)
        return self.target.head(hidden) if self.rows is None else hidden @ self.rows.T

    def labels(self, pack: Pack) -> tuple[Ints, Bools]:
        """The pack's labels as this head counts tokens; those it does not have are not valid."""
        if self.ids is None:
            return pack.labels, pack.valid
        places = np.searchsorted(self.ids, pack.labels).clip(max=len(self.ids) - 1)
        known = self.ids[places] == pack.labels
        return np.where(known, places, 0).astype(np.int32), pack.valid & known


class Competition:
    """Makes the head of each pack.

    Args:
        vocabulary: the draft's, int32 [size], ascending; None for all of the target's.
        negatives: tokens drawn for each pack, 0 to let all compete.
    """

    def __init__(
        self, target: Target, vocabulary: mx.array | None = None, negatives: int = 0
    ) -> None:
        self.target = target
        self._pool: Ints = np.arange(target.vocab_size, dtype=np.int32)
        self._fixed = DraftHead(target)
        if vocabulary is not None:
            self._pool = np.array(vocabulary)
            self._fixed = _some(target, self._pool)
        self._negatives = min(negatives, len(self._pool))

    def head(self, pack: Pack, random: np.random.Generator) -> DraftHead:
        """The head for a pack; `random` draws the tokens that compete with its labels."""
        if not self._negatives:
            return self._fixed
        drawn = random.choice(self._pool, self._negatives, replace=False)
        labels = np.intersect1d(pack.labels[pack.valid], self._pool)
        return _some(self.target, np.union1d(drawn, labels).astype(np.int32))


def _some(target: Target, ids: Ints) -> DraftHead:
    return DraftHead(target, ids, target.head_rows(mx.array(ids)))
