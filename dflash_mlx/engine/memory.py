"""How many bytes the caches of a request come to need, and how many there are.

Sizes per layer are those of a pass that is only built, never computed, so every family is right
without knowing it; how rows grow with tokens is footprint's. What passes themselves need is left
out of the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

import mlx.core as mx
from mlx.utils import tree_flatten

from ..footprint import ALLOWANCE, ALLOWANCE_SHARE, Rows
from ..kv import State, Windows
from ..loading import Pair
from ..machine import this_machine
from ..span import Span


@dataclass(frozen=True)
class CacheSize:
    """What the caches of one request take.

    Attributes:
        rows: layers with a row per token, with the bytes of an element.
        fixed: bytes whatever the length, of recurrent layers.
        block: rows behind the text.
    """

    rows: tuple[tuple[Rows, int], ...]
    fixed: int
    block: int

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """What `dataclasses.asdict` made, also after it was JSON."""
        rows = tuple((Rows(**rows), size) for rows, size in fields["rows"])
        return cls(**{**fields, "rows": rows})

    def bytes(self, tokens: int) -> int:
        """At so many tokens of prompt and answer."""
        return self.fixed + sum(
            size * rows.elements(tokens + self.block) for rows, size in self.rows
        )


def size_of(pair: Pair) -> CacheSize:
    """What the caches of `pair` take."""
    target, draft = pair.target, pair.draft
    block = draft.config.block_size if draft else 1
    cache = target.new_cache()
    ids = mx.zeros((1, max(block, 2)), mx.int32)
    _, features, state = target.forward(ids, 0, cache.begin(0, ids.shape[1], fixed=False))
    rows = list(_rows(cache.windows, state))
    # The states before and behind the last pass, and its rows.
    fixed = sum(_nbytes(p["after"]) * 2 + _nbytes(p["rows"]) for p in state.get("passes", []))
    if draft is not None and features is not None:
        context = draft.new_cache()
        extended = draft.extend(features, 0, context.begin(0, ids.shape[1], fixed=False))
        rows += _rows(context.windows, extended)
    return CacheSize(tuple(rows), fixed, block)


def sizes_of(pair: Pair) -> list[CacheSize]:
    """What the caches take on each of the ranks that share the target."""
    ranks = pair.ranks
    with ranks.running("sizes"):
        own = asdict(size_of(pair))
        return [CacheSize.from_dict(ranks.share(own, rank)) for rank in range(ranks.size)]


def available(pair: Pair) -> int:
    """Bytes for caches, beside what is loaded already; of several ranks, where there are least."""
    usable, ranks = this_machine().usable, pair.ranks
    allowance = ALLOWANCE + ALLOWANCE_SHARE * usable
    own = max(0, round(usable - mx.get_active_memory() - allowance))
    with ranks.running("room"):
        return -ranks.largest([-own])[0]


def _rows(windows: Windows, state: State) -> Iterator[tuple[Rows, int]]:
    for window, layer in zip(windows, state["layers"], strict=True):
        seen = window.recent + window.sink if isinstance(window, Span) else window
        for part in layer:
            yield Rows(1, part.shape[1] * part.shape[3], seen), part.itemsize


def _nbytes(tree: object) -> int:
    flat = cast(list[tuple[str, Any]], tree_flatten(tree))
    return sum(a.nbytes for _, a in flat if isinstance(a, mx.array))
