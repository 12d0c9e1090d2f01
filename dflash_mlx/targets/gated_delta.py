"""Qwen3-Next, Qwen3.5 and later: gated delta networks with full attention in every fourth layer.

The recurrence is mlx-lm's. During verification its input projections are listened to, and a
replay hands their recorded rows back to the same code, so that rolling back cannot drift from
decoding (`recurrent.py` says when a replay is due).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..kv import KVCache, LayerView, Scalar, State, Windows, collect, masks, views
from ..recurrent import RECORDED, HybridCache, Past, RecurrentView
from .base import Pass, Target, twin


@dataclass
class HybridPass(Pass):
    """`views` holds a `LayerView` or a `RecurrentView` per layer; both lists go by layer."""

    past: list[Past]
    rows: list[list[mx.array]]


class Listen:
    """A projection that keeps what it returned."""

    def __init__(self, projection: Callable[[mx.array], mx.array]) -> None:
        self._projection = projection
        self.rows: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        self.rows = self._projection(x)
        return self.rows


class Repeat:
    """Stands for a projection whose output is known."""

    def __init__(self, rows: mx.array) -> None:
        self._rows = rows

    def __call__(self, x: mx.array) -> mx.array:
        return self._rows


class GatedDeltaTarget(Target):
    """What the hybrids share; a family names the input projections of its recurrent layers."""

    projections: tuple[str, ...]

    def layer_windows(self) -> Windows:
        """The attention layers are full."""
        return (None,) * sum(not layer.is_linear for layer in self.layers)

    def new_cache(self) -> KVCache:
        """An empty cache for one generation."""
        return HybridCache(self.windows, len(self.layers) - len(self.windows))

    def open(self, ids: mx.array, start: Scalar, state: State) -> HybridPass:
        """Replay what was kept of the last pass, then share out views and masks."""
        past = self._settle(state)
        attention = iter(views(self.windows, state, start))
        recurrent = iter([RecurrentView(p) for p in past])
        layer_views = [next(recurrent if layer.is_linear else attention) for layer in self.layers]
        # All attention layers are alike; the recurrence is causal by itself.
        mask = masks(self.windows, state, start, ids.shape[1])[0]
        layer_masks = [None if layer.is_linear else mask for layer in self.layers]
        return HybridPass(layer_views, layer_masks, past, [])

    def run(self, index: int, hidden: mx.array, now: Pass) -> mx.array:
        """One layer; a recurrent one is listened to where its rows may be rejected."""
        assert isinstance(now, HybridPass)
        layer = self.layers[index]
        if not layer.is_linear or not 1 < hidden.shape[1] <= RECORDED:
            return super().run(index, hidden, now)
        net = layer.linear_attn
        ears = {name: Listen(getattr(net, name)) for name in self.projections}
        layer = twin(layer, linear_attn=twin(net, **ears))
        behind: mx.array = layer(hidden, mask=None, cache=now.views[index])
        now.rows.append([ear.rows for ear in ears.values() if ear.rows is not None])
        return behind

    def close(self, state: State, now: Pass) -> State:
        """The state after the pass."""
        assert isinstance(now, HybridPass)
        attention = [view for view in now.views if isinstance(view, LayerView)]
        after = [view.past for view in now.views if isinstance(view, RecurrentView)]
        passes = [
            {"before": b, "after": a, "rows": now.rows[i] if now.rows else None}
            for i, (b, a) in enumerate(zip(now.past, after, strict=True))
        ]
        return collect(state, attention) | {"passes": passes}

    def _settle(self, state: State) -> list[Past]:
        """Per recurrent layer its state at the start of the pass."""
        past: list[Past] = state["past"]
        if "rows" not in state:
            return past
        nets = [layer.linear_attn for layer in self.layers if layer.is_linear]
        return [
            self._replay(net, before, rows, state["kept"])
            for net, before, rows in zip(nets, past, state["rows"], strict=True)
        ]

    def _replay(self, net: Any, past: Past, rows: list[mx.array], kept: Scalar) -> Past:
        """The state behind the first `kept` of the recorded rows."""
        mask = lengths = None
        if isinstance(kept, int):
            rows = [r[:, :kept] for r in rows]
        else:
            lengths = kept[None]
            mask = (mx.arange(rows[0].shape[1]) < kept)[None]
        view = RecurrentView(past, lengths)
        known = {name: Repeat(r) for name, r in zip(self.projections, rows, strict=True)}
        # Its output is dropped, so MLX computes the recurrence alone.
        twin(net, **known)(rows[0], mask=mask, cache=view)
        return view.past
