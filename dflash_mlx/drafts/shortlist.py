"""What a draft chooses from, and what it chose."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class Wanted(NamedTuple):
    """A draft looks at so many of the largest logits of a place, among the first `limit` tokens."""

    largest: int
    limit: int | None = None


class Shortlist(NamedTuple):
    """Some tokens of each place: ids int32 [n, k], and their shaped logits, float32 [n, k]."""

    ids: mx.array
    logits: mx.array


class Candidates(NamedTuple):
    """What may be drafted at each place of a block.

    Attributes:
        ids: int32 [n, k], different ones in each row.
        scores: float32 [n, a, k], unnormalised log-probabilities: the last of the `a` rows holds
            whatever token comes before; where there are others, row j holds behind token j of the
            place before, at the first place behind the anchor.
    """

    ids: mx.array
    scores: mx.array


class Proposal(NamedTuple):
    """The drafted tokens of a block.

    Attributes:
        drafted: int32 [n].
        logq: None where the most probable tokens were taken, else log q, float32 [n, vocab]: row i
            is the very distribution that token i was drawn from, given the tokens before it.
        rows: float32 [n, some], the scores of what token i was chosen among, given the tokens
            before it. They say nothing of which one it became.
    """

    drafted: mx.array
    logq: mx.array | None
    rows: mx.array

    @property
    def certainty(self) -> mx.array:
        """Probability of each place's most probable token by the draft, float32 [n]."""
        return mx.exp(self.rows.max(axis=-1) - mx.logsumexp(self.rows, axis=-1))


def largest(logits: mx.array, count: int) -> Shortlist:
    """The `count` largest of each row [n, vocab], in no order."""
    ids = mx.argpartition(logits, -count, axis=-1)[:, -count:].astype(mx.int32)
    return Shortlist(ids, mx.take_along_axis(logits, ids, axis=-1))
