"""Few of a place's logits, where a draft chooses among few."""

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
