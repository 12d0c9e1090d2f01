"""From a session to arrays of their own, and back.

Both ways copy, once: a session writes into its arrays in place, and what is kept never changes.
Names are `target.LAYER.PART`, `draft.LAYER.PART` and, of recurrent layers, `past.LAYER.PART`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import mlx.core as mx

from ..kv import KVCache, seen_before
from ..loading import Pair
from ..recurrent import HybridCache
from ..session import Session
from .tree import Arrays, Entry

Form = tuple[tuple[int, ...], mx.Dtype]  # shape and type of an array


@dataclass(frozen=True)
class Layer:
    """Where the rows of one attention layer are, and what one takes.

    Attributes:
        owner: target or draft.
        window: what it sees; None where attention is full.
        rows: form of its arrays, keys before values, with one row.
    """

    owner: str
    index: int
    window: Any
    rows: tuple[Form, ...]

    @property
    def names(self) -> list[str]:
        """Of its arrays."""
        return [f"{self.owner}.{self.index}.{part}" for part in range(len(self.rows))]

    @property
    def nbytes(self) -> int:
        """Of one row."""
        return sum(math.prod(shape) * dtype.size for shape, dtype in self.rows)

    def forms(self, rows: int) -> Iterator[tuple[str, Form]]:
        """Its arrays where so many rows are kept."""
        for name, ((batch, heads, _, dim), dtype) in zip(self.names, self.rows, strict=True):
            yield name, ((batch, heads, rows, dim), dtype)


@dataclass(frozen=True)
class Layout:
    """What the sessions of a pair hold.

    Attributes:
        layers: of attention, in target and draft.
        past: the arrays of recurrent layers.
    """

    layers: tuple[Layer, ...]
    past: tuple[tuple[str, Form], ...]

    @classmethod
    def of(cls, pair: Pair) -> Layout:
        """Read off a session of one token."""
        session = Session(pair.target, pair.draft)
        session.prefill([0], chunk=1)
        return cls.read(session)

    @classmethod
    def read(cls, session: Session) -> Layout:
        """Read off a session that both caches hold a token of."""
        layers = [
            Layer(owner, i, cache.windows[i], tuple(_row(a) for a in rows))
            for owner, cache in _caches(session)
            for i, rows in enumerate(cache.state["layers"])
        ]
        return cls(tuple(layers), tuple((n, _form(a)) for n, a in _past(session).items()))

    @property
    def full(self) -> list[Layer]:
        """Layers whose rows branches hold."""
        return [layer for layer in self.layers if layer.window is None]

    @property
    def sliding(self) -> list[Layer]:
        """Layers whose rows marks hold."""
        return [layer for layer in self.layers if layer.window is not None]

    def row_nbytes(self) -> int:
        """Of an id in a branch."""
        return sum(layer.nbytes for layer in self.full)

    def fits(self, entry: Entry, arrays: Arrays) -> bool:
        """Whether these are the arrays of an entry."""
        if entry.ids:
            expected = [f for layer in self.full for f in layer.forms(len(entry.ids))]
        else:
            kept = [layer.forms(seen_before(layer.window, entry.start)) for layer in self.sliding]
            expected = [*chain(*kept), *self.past]
        return dict(expected) == {name: _form(array) for name, array in arrays.items()}

    def reach(self, position: int) -> int:
        """The shortest length that can be gone on from with a mark at `position`."""
        lost = any(seen_before(layer.window, position) < position for layer in self.sliding)
        return position if self.past or lost else 0


def is_marked(pair: Pair) -> bool:
    """Whether it takes a mark to go on with a session of this pair."""
    session = Session(pair.target, pair.draft)
    windows = [window for _, cache in _caches(session) for window in cache.windows]
    return isinstance(session.cache, HybridCache) or any(w is not None for w in windows)


def length_of(session: Session) -> int:
    """How many ids both caches hold; features that wait enter the context first."""
    session.flush()
    lengths = [cache.length for _, cache in _caches(session)]
    return min(len(session.ids), *lengths)


def branch(layout: Layout, session: Session, first: int, last: int) -> Arrays:
    """The rows of full layers for positions `first` to `last`."""
    caches = dict(_caches(session))
    arrays: Arrays = {}
    for layer in layout.full:
        copied = caches[layer.owner].copy(layer.index, first, last)
        arrays |= zip(layer.names, copied, strict=True)
    mx.eval(arrays)
    return arrays


def mark(layout: Layout, session: Session, length: int) -> Arrays | None:
    """Windows and recurrent states at the end of the caches; None where they are not there."""
    caches = dict(_caches(session))
    if layout.past and caches["target"].length != length:
        return None
    arrays: Arrays = {}
    for layer in layout.sliding:
        copied = caches[layer.owner].copy_seen(layer.index, length)
        if copied is None:
            return None
        arrays |= zip(layer.names, copied, strict=True)
    arrays |= {name: _own(array) for name, array in _past(session).items()}
    mx.eval(arrays)
    return arrays


def resume(
    pair: Pair, layout: Layout, ids: Sequence[int], path: Sequence[Entry], mark: Entry | None
) -> Session:
    """A session that holds `ids`, from the branches that lead there and a mark at or behind it."""
    session, length = Session(pair.target, pair.draft), len(ids)
    session.ids = list(ids)
    ends = [min(length, after.start) for after in path[1:]] + [length]
    parts = [(e.arrays or {}, end - e.start) for e, end in zip(path, ends, strict=True) if e.ids]
    kept = mark.arrays if mark and mark.arrays else {}
    for owner, cache in _caches(session):
        layers = [layer for layer in layout.layers if layer.owner == owner]
        rows = [_pieces(layer, parts, kept, length, mark) for layer in layers]
        past = _grouped(layout, kept) if owner == "target" else []
        cache.resume(length, rows, past)
        mx.eval(cache.arrays())
    return session


def _pieces(
    layer: Layer,
    parts: Sequence[tuple[Arrays, int]],
    kept: Arrays,
    length: int,
    mark: Entry | None,
) -> list[list[mx.array]]:
    if layer.window is None:
        return [[held[name][..., :n, :] for held, n in parts if n > 0] for name in layer.names]
    assert mark is not None
    ahead = mark.start - length  # rows of the mark behind the place to go on from
    return [[kept[name][..., : kept[name].shape[2] - ahead, :]] for name in layer.names]


def _caches(session: Session) -> list[tuple[str, KVCache]]:
    context = [] if session.context is None else [("draft", session.context)]
    return [("target", session.cache), *context]


def _past(session: Session) -> Arrays:
    states = session.target.past(session.cache)
    return {
        f"past.{i}.{j}": array
        for i, state in enumerate(states)
        for j, array in enumerate(state)
        if array is not None
    }


def _grouped(layout: Layout, kept: Arrays) -> list[list[mx.array | None]]:
    """The arrays of recurrent layers, in copies of their own, by layer."""
    layers: dict[str, list[mx.array | None]] = {}
    for name, _ in layout.past:
        layers.setdefault(name.split(".")[1], []).append(_own(kept[name]))
    return list(layers.values())


def _row(array: mx.array) -> Form:
    batch, heads, _, dim = array.shape
    return (batch, heads, 1, dim), array.dtype


def _form(array: mx.array) -> Form:
    return array.shape, array.dtype


def _own(array: mx.array) -> mx.array:
    return mx.take(array, mx.arange(array.shape[0]), axis=0)
