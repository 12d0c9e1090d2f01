"""mlx-lm's attention layers with the softmax computed by the kernel.

A layer of mlx-lm rotates queries and keys, hands keys and values to its cache and attends to what
comes back. Here the cache itself attends, with the queries that it was shown on the way, and what
comes back are the finished rows: attention in which every row sees only itself returns them as
they are. So nothing of the layer has to be written again, whatever it does before and behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx

from ..batched import BatchedMask, BatchedView
from ..kernels.attend import attend
from ..kernels.choice import Kernels
from ..kv import LayerView
from .twin import twin


@dataclass(frozen=True)
class Softmax:
    """Names of a family's attention module that the kernel needs to know."""

    scale: str = "scale"
    sinks: str | None = None


class Rotated:
    """Stands for a rotary embedding and keeps what it rotated first: the queries."""

    def __init__(self, rope: Any) -> None:
        self._rope = rope
        self.queries: mx.array | None = None

    def __call__(self, x: mx.array, offset: Any) -> mx.array:
        """As the rotary embedding."""
        rotated: mx.array = self._rope(x, offset=offset)
        if self.queries is None:
            self.queries = rotated
        return rotated


class ApartView:
    """Several texts' caches that return, as keys and as values, what attention to them gives."""

    def __init__(self, view: BatchedView, rotated: Rotated, run: Any) -> None:
        self._rotated = rotated
        self._run = run
        self.offset = view.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Finished rows [B, heads, L, head_dim], twice."""
        assert self._rotated.queries is not None
        done = self._run(self._rotated.queries, keys, values)
        return done, done


class AttendedView:
    """A layer's cache that returns, as keys and as values, what attention to it gives.

    Args:
        view: the cache.
        rotated: sees the queries.
        run: takes queries, keys, values and the slot of the first row.
    """

    def __init__(self, view: LayerView, rotated: Rotated, run: Any) -> None:
        self._view = view
        self._rotated = rotated
        self._run = run
        self.offset = view.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Finished rows [1, heads, L, head_dim], twice."""
        assert self._rotated.queries is not None
        rows = self._view.write(keys, values)
        done = self._run(self._rotated.queries, *rows, self._view.slot)
        return done, done


def attended(
    layer: Any,
    view: LayerView,
    mask: Any,
    rows: int,
    heads: int,
    window: int | None,
    softmax: Softmax,
    kernels: Kernels,
) -> tuple[Any, Any, Any]:
    """Layer, cache and mask to call it with: others than given where the kernel attends.

    Args:
        layer: of mlx-lm, with `self_attn`.
        view, mask: its cache in this pass, and what MLX would be called with.
        rows, heads: of the queries.
        window: what the layer sees.
        softmax: names of its parts.
        kernels: what to run by.
    """
    if not kernels.active or view.rows is None:
        return layer, view, mask
    attention = layer.self_attn
    sinks = _sinks(attention, softmax)
    run = attend(kernels, view.rows[0], rows, heads, window=window, sinks=sinks is not None)
    if run is None:
        return layer, view, mask
    copied, rotated = _shown(layer, softmax)
    run = partial(run, scale=getattr(attention, softmax.scale), sinks=sinks)
    return copied, AttendedView(view, rotated, run), mx.eye(rows, dtype=mx.bool_)


def apart(
    layer: Any, view: BatchedView, mask: BatchedMask, rows: int, softmax: Softmax
) -> tuple[Any, Any, Any]:
    """Layer, cache and mask to call it with, so that each of several texts attends by itself."""
    attention = layer.self_attn
    copied, rotated = _shown(layer, softmax)
    run = partial(
        view.attend,
        masks=mask,
        scale=getattr(attention, softmax.scale),
        sinks=_sinks(attention, softmax),
    )
    return copied, ApartView(view, rotated, run), mx.eye(rows, dtype=mx.bool_)


def _sinks(attention: Any, softmax: Softmax) -> mx.array | None:
    return attention[softmax.sinks] if softmax.sinks else None


def _shown(layer: Any, softmax: Softmax) -> tuple[Any, Rotated]:
    """A twin of a layer that shows its queries and only hands on the rows its cache returns."""
    rotated = Rotated(layer.self_attn.rope)
    parts = {"rope": rotated} | ({softmax.sinks: None} if softmax.sinks else {})
    return twin(layer, self_attn=twin(layer.self_attn, **parts)), rotated
