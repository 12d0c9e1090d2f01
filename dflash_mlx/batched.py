"""Several texts in one pass, each with its own cache, length and position.

Only attention looks at a cache. So a batch shares every other operation, whose weights are then
read once for all texts, and each text attends by itself, to rows that stay where they are: nothing
is padded or copied when texts join or leave, and a text rounds as it does alone. A layer that
cannot be told to (because its queries cannot be seen) gets padded copies of all rows instead.

Where a pass takes several texts, `State` becomes a list of states and the start a list of ints;
the functions here stand for those of `kv.py` and take both. Such a pass is always exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from . import kv
from .kv import LayerView, Scalar, State, Windows
from .recurrent import RecurrentView

States = State | list[State]
Starts = Scalar | list[int]


class BatchedView:
    """One attention layer's caches of several texts, in the protocol of mlx-lm's attention.

    Attributes:
        each: the views of the texts.
        offset: int32 [B], where each text's rows begin.
    """

    def __init__(self, each: Sequence[LayerView], offset: mx.array) -> None:
        self.each = list(each)
        self.offset = offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write [B, kv_heads, L, head_dim]; return all rows, padded with zeros to one length."""
        written = self._write(keys, values)
        slots = max(k.shape[2] for k, _ in written)
        return (
            mx.concatenate([_padded(k, slots, 2) for k, _ in written]),
            mx.concatenate([_padded(v, slots, 2) for _, v in written]),
        )

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        masks: BatchedMask,
        *,
        scale: float,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Write keys and values, then attend, text by text: [B, heads, L, head_dim]."""
        written = zip(self._write(keys, values), masks.each, strict=True)
        done = [
            mx.fast.scaled_dot_product_attention(
                queries[i : i + 1], k, v, scale=scale, mask=mask, sinks=sinks
            )
            for i, ((k, v), mask) in enumerate(written)
        ]
        return mx.concatenate(done)

    def _write(self, keys: mx.array, values: mx.array) -> list[tuple[mx.array, mx.array]]:
        return [
            view.update_and_fetch(keys[i : i + 1], values[i : i + 1])
            for i, view in enumerate(self.each)
        ]


class BatchedMask:
    """What each text of a batch may see, as `kv.masks` says it of one."""

    def __init__(self, each: Sequence[Any]) -> None:
        self.each = list(each)

    def joined(self) -> mx.array:
        """One mask over padded rows, bool [B, 1, L, slots]; no shorthand may be among them."""
        slots = max(mask.shape[1] for mask in self.each)
        return mx.stack([_padded(mask, slots, 1) for mask in self.each])[:, None]


class BatchedRecurrentView:
    """One recurrent layer's states of several texts, in the protocol of mlx-lm's `ArraysCache`."""

    def __init__(self, each: Sequence[RecurrentView], lengths: mx.array | None = None) -> None:
        self.each = list(each)
        self.lengths = lengths  # int32 [B]: how many rows of each count; None where all do

    def __getitem__(self, index: int) -> mx.array:
        parts = [view[index] for view in self.each]
        return mx.concatenate([part for part in parts if part is not None])

    def __setitem__(self, index: int, value: mx.array) -> None:
        for i, view in enumerate(self.each):
            view[index] = value[i : i + 1]

    def advance(self, rows: int) -> None:
        """As of one."""


def views(
    windows: Windows,
    state: States,
    start: Starts,
    view: Callable[[list[mx.array] | None, Scalar, Scalar], LayerView] = LayerView,
) -> list[Any]:
    """One view per layer; see `kv.views`. Views of several texts are of keys and values in full."""
    if not isinstance(state, list):
        assert not isinstance(start, list)
        return list(kv.views(windows, state, start, view))
    assert isinstance(start, list) and view is LayerView
    offset = mx.array(start, mx.int32)
    each = [kv.views(windows, s, first) for s, first in zip(state, start, strict=True)]
    return [BatchedView(layer, offset) for layer in zip(*each, strict=True)]


def masks(
    windows: Windows,
    state: States,
    start: Starts,
    rows: int,
    ahead: Sequence[bool] = (),
    *,
    shorthand: bool = True,
    apart: bool = False,
) -> list[Any]:
    """Per layer, what queries may see; see `kv.masks`.

    Args:
        apart: whether layers attend text by text, and want a `BatchedMask`.
    """
    if not isinstance(state, list):
        assert not isinstance(start, list)
        return kv.masks(windows, state, start, rows, ahead, shorthand=shorthand)
    assert isinstance(start, list)
    each = [
        kv.masks(windows, s, first, rows, ahead, shorthand=shorthand and apart)
        for s, first in zip(state, start, strict=True)
    ]
    made: dict[tuple[kv.Window, bool], Any] = {}
    kinds = list(zip(windows, ahead or [False] * len(windows), strict=True))
    for kind, layer in zip(kinds, zip(*each, strict=True), strict=True):
        if kind not in made:
            made[kind] = BatchedMask(layer) if apart else BatchedMask(layer).joined()
    return [made[kind] for kind in kinds]


def collect(state: States, layers: Sequence[Any]) -> Any:
    """The state after a pass over `layers`, a list of them for several texts."""
    if not isinstance(state, list):
        return kv.collect(state, layers)
    return [kv.collect(s, [layer.each[i] for layer in layers]) for i, s in enumerate(state)]


def _padded(array: mx.array, size: int, axis: int) -> mx.array:
    missing = size - array.shape[axis]
    if missing == 0:
        return array
    widths = [(0, missing if i == axis else 0) for i in range(array.ndim)]
    return mx.pad(array, widths)
