"""From a session to arrays of their own, and back.

Both ways copy, once: a session writes into its arrays in place, and what is kept never changes.
Names are `target.LAYER.keys`, `draft.LAYER.values` and, of recurrent layers, `past.LAYER.PART`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..kv import KVCache
from ..loading import Pair
from ..session import Session
from .tree import Arrays, Entry

SIDES = ("keys", "values")


@dataclass(frozen=True)
class Layer:
    """Where the rows of one attention layer are, and what one takes.

    Attributes:
        owner: target or draft.
        window: None where attention is full.
        sides: of keys and of values: heads and head_dim.
    """

    owner: str
    index: int
    window: int | None
    sides: tuple[tuple[int, int], ...]
    dtype: mx.Dtype

    @property
    def names(self) -> tuple[str, str]:
        """Of its arrays."""
        return (f"{self.owner}.{self.index}.keys", f"{self.owner}.{self.index}.values")

    @property
    def nbytes(self) -> int:
        """Of one row."""
        return sum(math.prod(side) for side in self.sides) * self.dtype.size

    def shapes(self, rows: int) -> Iterator[tuple[str, tuple[int, ...], mx.Dtype]]:
        """Name, shape and dtype of its arrays where so many rows are kept."""
        for name, (heads, dim) in zip(self.names, self.sides, strict=True):
            yield name, (1, heads, rows, dim), self.dtype


@dataclass(frozen=True)
class Layout:
    """What the sessions of a pair hold.

    Attributes:
        layers: of attention, in target and draft.
        past: of recurrent layers: name, shape and dtype of their arrays.
    """

    layers: tuple[Layer, ...]
    past: tuple[tuple[str, tuple[int, ...], mx.Dtype], ...]

    @classmethod
    def of(cls, pair: Pair) -> Layout:
        """Read off a session of one token."""
        session = Session(pair.target, pair.draft)
        session.prefill([0], chunk=1)
        layers = [
            Layer(owner, i, cache.windows[i], tuple((a.shape[1], a.shape[3]) for a in rows), dtype)
            for owner, cache in _caches(session)
            for i, rows in enumerate(cache.state["layers"])
            for dtype in [rows[0].dtype]
        ]
        past = _past(session)
        return cls(tuple(layers), tuple((n, a.shape, a.dtype) for n, a in past.items()))

    @property
    def full(self) -> list[Layer]:
        """Layers whose rows branches hold."""
        return [layer for layer in self.layers if layer.window is None]

    @property
    def sliding(self) -> list[tuple[Layer, int]]:
        """Layers whose rows marks hold, with their window."""
        return [(layer, layer.window) for layer in self.layers if layer.window is not None]

    @property
    def marked(self) -> bool:
        """Whether it takes a mark to go on."""
        return bool(self.past or self.sliding)

    def row_nbytes(self) -> int:
        """Of an id in a branch."""
        return sum(layer.nbytes for layer in self.full)

    def fits(self, entry: Entry, arrays: Arrays) -> bool:
        """Whether these are the arrays of an entry."""
        if entry.ids:
            shapes = [s for layer in self.full for s in layer.shapes(len(entry.ids))]
        else:
            shapes = [
                s for layer, w in self.sliding for s in layer.shapes(min(entry.start, w - 1))
            ] + list(self.past)
        given = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        return given == {name: (shape, dtype) for name, shape, dtype in shapes}

    def reach(self, position: int) -> int:
        """The shortest length that can be gone on from with a mark at `position`."""
        whole = not self.past and all(position < window for _, window in self.sliding)
        return 0 if whole else position


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
    for layer, window in layout.sliding:
        cache, first = caches[layer.owner], max(0, length - window + 1)
        if cache.base_of(window) > first:
            return None
        arrays |= zip(layer.names, cache.copy(layer.index, first, length), strict=True)
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
) -> tuple[list[mx.array], list[mx.array]]:
    if layer.window is not None:
        assert mark is not None
        ahead = mark.start - length  # rows of the mark behind the place to go on from
        first, second = (kept[name] for name in layer.names)
        rows = first.shape[2] - ahead
        return [first[..., :rows, :]], [second[..., :rows, :]]
    keys, values = (
        [arrays[name][..., :rows, :] for arrays, rows in parts if rows > 0] for name in layer.names
    )
    return keys, values


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
    for name, _, _ in layout.past:
        layers.setdefault(name.split(".")[1], []).append(_own(kept[name]))
    return list(layers.values())


def _own(array: mx.array) -> mx.array:
    return mx.take(array, mx.arange(array.shape[0]), axis=0)
