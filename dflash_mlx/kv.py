"""Keys and values of attention layers, written in place.

A `KVCache` belongs to one generation. Its arrays form a plain pytree (`state`) that goes into a
forward pass and comes out updated, so that a pass can be compiled; which rows count is decided
by `length` alone. Rows behind it are garbage that the next pass overwrites: rolling back the
rejected part of a block is one assignment.

Slot 0 of a layer holds position `base`. Layers with full attention keep base 0 and grow; layers
with a sliding window move the rows still visible to the front when they run out of slots, which
bounds their memory and keeps every row at slot `position - base`. Where a `Span` keeps the first
positions, too, these stay in the first slots, and rows move up behind them.

A pass runs in one of two ways. *Exact*: `start` and the bases are ints, and layers see just the
rows that exist (prefill, and decoding where nothing is compiled). *Fixed*: they are int32
scalars on the device, layers see all slots, and masks hide those that do not count, so that one
compiled pass serves every length until the slots run out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from .span import Span

Window = int | Span | None  # positions a layer sees; None for full attention
Windows = tuple[Window, ...]
Scalar = int | mx.array
# "base": one scalar per distinct window; "layers": [keys, values] per layer, each
# [1, kv_heads, slots, head_dim], or None before the first pass. Quantised, there are six arrays.
State = dict[str, Any]
# Rows of a layer: of each of its arrays, parts [1, kv_heads, rows, head_dim] in order.
Pieces = Sequence[Sequence[mx.array]]
STEP = 256  # slots are added in this many, as mlx-lm does


class LayerView:
    """One layer's cache during one pass, in the protocol that mlx-lm's attention expects."""

    def __init__(self, rows: list[mx.array] | None, base: Scalar, start: Scalar) -> None:
        self.rows = rows
        self.offset = start
        self._base = base

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write [1, kv_heads, L, head_dim] at `offset`; return what queries may attend to."""
        all_keys, all_values = self.seen(self.store([keys, values]), keys.shape[2])
        return all_keys, all_values

    def write(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write as above; return all slots, those behind the last row included."""
        all_keys, all_values = self.store([keys, values])
        return all_keys, all_values

    def store(self, new: list[mx.array]) -> list[mx.array]:
        """Write rows at `offset`, an array for each of the layer's; return all slots."""
        old: Sequence[Any] = self.rows or [None] * len(new)
        pairs = list(zip(old, new, strict=True))
        if isinstance(self.offset, int):
            first = self.offset - int(self._base)
            self.rows = [_write(there, rows, first) for there, rows in pairs]
        else:
            self.rows = [mx.slice_update(o, n, self.slot, axes=(2,)) for o, n in pairs]
        return self.rows

    def seen(self, rows: list[mx.array], written: int) -> list[mx.array]:
        """All slots up to the last of the rows just written; all of them in a fixed pass."""
        if not isinstance(self.offset, int):
            return rows
        last = self.offset - int(self._base) + written
        return [a[..., :last, :] for a in rows]

    @property
    def slot(self) -> mx.array:
        """Slot of the pass's first row, int32 [1]."""
        if isinstance(self.offset, int):
            return mx.array([self.offset - int(self._base)], mx.int32)
        return (self.offset - self._base)[None]


def views(
    windows: Windows,
    state: State,
    start: Scalar,
    view: Callable[[list[mx.array] | None, Scalar, Scalar], LayerView] = LayerView,
) -> list[LayerView]:
    """One view per layer for a pass whose first row is at position `start`."""
    bases = dict(zip(dict.fromkeys(windows), state["base"], strict=True))
    return [
        view(rows, bases[window], start)
        for window, rows in zip(windows, state["layers"], strict=True)
    ]


def collect(state: State, layers: Sequence[LayerView]) -> State:
    """The state after a pass over `layers`."""
    return {"base": state["base"], "layers": [layer.rows for layer in layers]}


def masks(
    windows: Windows,
    state: State,
    start: Scalar,
    rows: int,
    ahead: Sequence[bool] = (),
    *,
    shorthand: bool = True,
) -> list[Any]:
    """Per layer: which keys the `rows` queries from position `start` on may see.

    Args:
        ahead: per layer, whether a query also sees the rows behind it (a bidirectional block);
            nowhere by default.
        shorthand: whether layers understand mlx-lm's "causal", and None for everything.

    Returns:
        bool [rows, keys] per layer, or a shorthand for it.
    """
    made: dict[tuple[Window, bool], Any] = {}
    bases = dict(zip(dict.fromkeys(windows), state["base"], strict=True))
    kinds = list(zip(windows, ahead or [False] * len(windows), strict=True))
    for (window, sees_ahead), layer in zip(kinds, state["layers"], strict=True):
        if (window, sees_ahead) not in made:
            slots = layer[0].shape[2] if layer else 0
            short = _shorthand(window, bases[window], start, rows, sees_ahead)
            made[window, sees_ahead] = (
                short[0]
                if short and shorthand
                else _mask(window, bases[window], start, rows, slots, sees_ahead)
            )
    return [made[kind] for kind in kinds]


def seen_before(window: Window, length: int) -> int:
    """How many of the `length` rows before a position a layer sees from there, sinks included."""
    return length if window is None else min(length, recent_of(window) - 1 + _sink(window))


class KVCache:
    """The attention cache of all layers of one model in one generation."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.clear()

    def clear(self) -> None:
        """Forget everything, the arrays too."""
        self.length = 0
        self.state: State = {
            "base": [0] * len(dict.fromkeys(self.windows)),
            "layers": [None] * len(self.windows),
        }

    def commit(self, rows: int) -> None:
        """Keep the first `rows` rows of the last pass and forget the rest."""
        self.length += rows

    def begin(self, start: int, rows: int, fixed: bool) -> State:
        """Make room for a pass over `rows` rows from position `start` on.

        Args:
            start: `length`, or more where passes are issued before the last one is committed.
            fixed: whether the pass runs with fixed shapes.

        Returns:
            the state that the pass is given.
        """
        self.reserve(start + rows - self.length)
        return self.fixed() if fixed else self.state

    def update(self, state: State) -> None:
        """Take over what the pass has written."""
        self.state["layers"] = state["layers"]

    def reserve(self, rows: int) -> None:
        """Make room for `rows` more rows behind `length`; sliding layers drop what none sees."""
        bases, layers = list(self.state["base"]), list(self.state["layers"])
        for index, window in enumerate(dict.fromkeys(self.windows)):
            drop = self._surplus(bases[index], window)
            bases[index] += drop
            slots = self.length + rows - bases[index]
            for i, pair in enumerate(layers):
                if pair and self.windows[i] == window:
                    # Rolling keeps the number of slots, and so a compiled pass.
                    layers[i] = [_room(_moved(a, drop, _sink(window)), slots) for a in pair]
        # At once: an interrupt must not leave rows that have moved with a base that has not.
        self.state = {"base": bases, "layers": layers}

    def trim(self, length: int) -> int:
        """Forget the rows from position `length` on.

        Returns:
            The length reached: 0 where a sliding window no longer holds the rows that going on
            from `length` would read.
        """
        bases = zip(dict.fromkeys(self.windows), self.state["base"], strict=True)
        if any(w is not None and _lacks(w, base, length) for w, base in bases):
            length = 0
        self.length = min(self.length, length)
        if self.length == 0:
            self.state["base"] = [0] * len(self.state["base"])
        return self.length

    def select(self, rows: mx.array) -> None:
        """Where a batch is decoded, keep only these of its texts, int32 [n]."""
        layers = [pair and [a[rows] for a in pair] for pair in self.state["layers"]]
        self.state = {"base": self.state["base"], "layers": layers}

    def skip(self, length: int) -> None:
        """Go on at position `length` without the rows before it but the sinks.

        All layers must slide or have a span, and sinks be there already.
        """
        assert None not in self.windows
        self.length = length
        self.state["base"] = [length - _sink(w) for w in dict.fromkeys(self.windows)]

    @property
    def sinks(self) -> int:
        """How many of the first rows some layer keeps for ever."""
        return max(map(_sink, self.windows))

    def copy(self, index: int, first: int, last: int) -> list[mx.array]:
        """Rows of a layer from position `first` to `last`, in arrays of their own.

        A slice would keep all slots alive, and make the next pass copy them.
        """
        bases = dict(zip(dict.fromkeys(self.windows), self.state["base"], strict=True))
        places = mx.arange(first, last) - bases[self.windows[index]]
        return [mx.take(rows, places, axis=2) for rows in self.state["layers"][index]]

    def copy_seen(self, index: int, length: int) -> list[mx.array] | None:
        """The `seen_before` rows of a sliding layer, as `copy`; None where they were dropped."""
        window = self.windows[index]
        bases = dict(zip(dict.fromkeys(self.windows), self.state["base"], strict=True))
        if window is not None and _lacks(window, bases[window], length):
            return None
        seen = seen_before(window, length)
        sink = min(_sink(window), seen)
        recent = self.copy(index, length - seen + sink, length)
        if not sink:
            return recent
        sinks = [mx.take(rows, mx.arange(sink), axis=2) for rows in self.state["layers"][index]]
        return [mx.concatenate([s, r], axis=2) for s, r in zip(sinks, recent, strict=True)]

    def resume(
        self, length: int, rows: Sequence[Pieces], past: Sequence[Sequence[mx.array | None]] = ()
    ) -> None:
        """Go on at position `length` with rows that were copied before, and are copied again.

        Args:
            rows: per layer; a full layer has all of them, a sliding one what it sees.
            past: per recurrent layer, its state.
        """
        assert not past
        held = {
            window: sum(piece.shape[2] for piece in pieces[0])
            for window, pieces in zip(self.windows, rows, strict=True)
        }
        assert held.get(None, length) == length
        self.length = length
        self.state = {
            "base": [length - held[window] for window in dict.fromkeys(self.windows)],
            "layers": [[_joined(part) for part in pieces] for pieces in rows],
        }

    def stretch(self, length: int) -> None:
        """Pretend that `length` rows were committed, those missing being zeros: for timing."""
        self.length = length

    def arrays(self) -> list[mx.array]:
        """What must be evaluated for the last pass to be written."""
        return [a for pair in self.state["layers"] if pair for a in pair]

    def fixed(self) -> State:
        """The state as input of a compiled pass."""
        return {
            "base": [mx.array(base, mx.int32) for base in self.state["base"]],
            "layers": self.state["layers"],
        }

    def _surplus(self, base: int, window: Window) -> int:
        """How many of the oldest rows to drop before more are written."""
        if window is None:
            return 0
        # STEP rows more than the window stay, so that a chat can step back a little. Rows move by
        # whole STEPs: rarely, and without changing how kernels split attention over the slots.
        kept = recent_of(window) + _sink(window) + STEP
        return max(0, self.length - kept - base) // STEP * STEP


def recent_of(window: int | Span) -> int:
    """How many positions back a row sees less than."""
    return window.recent if isinstance(window, Span) else window


def _sink(window: Window) -> int:
    return window.sink if isinstance(window, Span) else 0


def _lacks(window: int | Span, base: int, length: int) -> bool:
    """Whether rows were dropped that a row at position `length` would see."""
    return base > 0 and base + _sink(window) > length - recent_of(window) + 1


def _moved(rows: mx.array, drop: int, sink: int) -> mx.array:
    """`rows` without `drop` of them behind the sinks; those come last, and do not count."""
    if not drop:
        return rows
    if not sink:
        return mx.roll(rows, -drop, 2)
    return mx.concatenate([rows[:, :, :sink], mx.roll(rows[:, :, sink:], -drop, 2)], axis=2)


def _write(old: mx.array | None, new: mx.array, first: int) -> mx.array:
    last = first + new.shape[2]
    rows = _room(new[..., :0, :] if old is None else old, last)
    rows[..., first:last, :] = new
    return rows


def _room(rows: mx.array, slots: int) -> mx.array:
    """`rows` with at least `slots` slots, the new ones zero."""
    missing = slots - rows.shape[2]
    if missing <= 0:
        return rows
    batch, heads, _, dim = rows.shape
    # Zeros, not garbage: a masked NaN would still reach the output.
    more = mx.zeros((batch, heads, -(-missing // STEP) * STEP, dim), rows.dtype)
    return mx.concatenate([rows, more], axis=2)


def _joined(pieces: Sequence[mx.array]) -> mx.array:
    """All rows in one new array with room for more."""
    rows = sum(piece.shape[2] for piece in pieces)
    batch, heads, _, dim = pieces[0].shape
    room = -(-(rows + 1) // STEP) * STEP - rows
    more = mx.zeros((batch, heads, room, dim), pieces[0].dtype)
    return mx.concatenate([*pieces, more], axis=2)


def _shorthand(
    window: Window, base: Scalar, start: Scalar, rows: int, ahead: bool
) -> tuple[str | None] | None:
    """In a tuple, what says the same as the mask; None where only the mask says it."""
    if not isinstance(start, int):
        return None
    if window is not None and start + rows - int(base) > recent_of(window):
        return None
    return (None,) if ahead or rows == 1 else ("causal",)


def _mask(
    window: Window, base: Scalar, start: Scalar, rows: int, slots: int, ahead: bool
) -> mx.array:
    last = start + rows
    slot = mx.arange(int(last) - int(base) if isinstance(last, int) else slots)
    sinks = slot < _sink(window)
    key = mx.where(sinks, slot, base + slot)
    query = (start + mx.arange(rows))[:, None]
    seen = mx.broadcast_to(key < last, (rows, key.size)) if ahead else key <= query
    if window is not None:
        seen = seen & ((key > query - recent_of(window)) | sinks)
    return seen
