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

from ..batched import (
    BatchedRecurrentView,
    BatchedView,
    Starts,
    States,
    collect,
    masks,
)
from ..kernels.choice import Run
from ..kernels.recurrence import recurrence
from ..kv import KVCache, LayerView, Scalar, State, Windows
from ..recurrent import RECORDED, HybridCache, Past, RecurrentView
from .base import Pass, Target
from .delta_round import Projected, run_round
from .twin import twin


@dataclass
class HybridPass(Pass):
    """`views` holds a `LayerView` or a `RecurrentView` per layer; both lists go by layer.

    Attributes:
        past: per recurrent layer, its state before the pass; of several texts a list.
        rows: per recurrent layer run so far, what its projections returned.
        rounds: what runs those layers, replay included; None where mlx-lm does.
    """

    past: list[Any]
    rows: list[list[mx.array]]
    rounds: Rounds | None = None


@dataclass(frozen=True)
class Rounds:
    """How a pass goes on from the one before it in one dispatch per layer.

    Attributes:
        run: the recurrence.
        old: per recurrent layer, its rows of the last pass; None where there are none to replay.
        kept: how many of them count.
    """

    run: Run
    old: list[list[mx.array] | None]
    kept: Scalar


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

    def window_of(self, index: int) -> int | None:
        """None: attention is full where there is any."""
        return None

    def new_cache(self) -> KVCache:
        """An empty cache for one generation."""
        return HybridCache(self.windows, len(self.layers) - len(self.windows))

    def past(self, cache: KVCache) -> list[Past]:
        """Per recurrent layer, its state behind all that is committed; nothing computed yet."""
        return self._settle(cache.begin(cache.length, 0, fixed=False))

    def open(self, ids: mx.array, start: Starts, state: States) -> HybridPass:
        """Replay what was kept of the last pass, then share out views and masks."""
        rounds = None
        past: list[Any]
        if isinstance(state, list):
            past = self._settle_all(state)
            states: list[Any] = [
                BatchedRecurrentView([RecurrentView(p) for p in layer]) for layer in past
            ]
        else:
            rounds = self._rounds(state, ids.shape[1])
            past = list(state["past"]) if rounds else self._settle(state)
            states = [RecurrentView(p) for p in past]
        recurrent, attention = iter(states), iter(self.views(state, start))
        layer_views = [next(recurrent if layer.is_linear else attention) for layer in self.layers]
        # All attention layers are alike; the recurrence is causal by itself.
        mask = next(iter(masks(self.windows, state, start, ids.shape[1], apart=True)), None)
        layer_masks = [None if layer.is_linear else mask for layer in self.layers]
        return HybridPass(layer_views, layer_masks, past, [], rounds)

    def run(self, index: int, hidden: mx.array, now: Pass) -> mx.array:
        """One layer; a recurrent one is listened to where its rows may be rejected."""
        assert isinstance(now, HybridPass)
        layer = self.layers[index]
        if not layer.is_linear or not 1 < hidden.shape[1] <= RECORDED:
            return super().run(index, hidden, now)
        net = layer.linear_attn
        if now.rounds is not None:
            return self._round(layer, hidden, now, now.rounds)
        ears = {name: Listen(getattr(net, name)) for name in self.projections}
        layer = twin(layer, linear_attn=twin(net, **ears))
        behind: mx.array = layer(hidden, mask=None, cache=now.views[index])
        now.rows.append([ear.rows for ear in ears.values() if ear.rows is not None])
        return behind

    def close(self, state: States, now: Pass) -> Any:
        """The state after the pass; a list of them for several texts."""
        assert isinstance(now, HybridPass)
        attention = [view for view in now.views if isinstance(view, LayerView | BatchedView)]
        states = collect(state, attention)
        if isinstance(state, list):
            return [s | {"passes": _passes_of(now, i)} for i, s in enumerate(states)]
        after = [view.past for view in now.views if isinstance(view, RecurrentView)]
        passes = [
            {
                "before": b,
                "after": None if now.rounds else a,
                "rows": now.rows[i] if now.rows else None,
            }
            for i, (b, a) in enumerate(zip(now.past, after, strict=True))
        ]
        return states | {"passes": passes}

    def projected(self, net: Any, rows: list[mx.array]) -> Projected:
        """What `projections` returned, as the recurrence takes it."""
        raise NotImplementedError

    def _rounds(self, state: State, rows: int) -> Rounds | None:
        """How a pass of so many rows runs by the kernel; None for mlx-lm's own code."""
        past: list[Past] = state["past"]
        # A rank may hold attention layers alone.
        if not past or not 1 < rows <= RECORDED or any(part is None for p in past for part in p):
            return None
        net = next(layer.linear_attn for layer in self.layers if layer.is_linear)
        heads = (net.num_v_heads, net.num_k_heads, net.head_k_dim, net.head_v_dim)
        run = recurrence(self.kernels, rows, self.dtype, *heads)
        if run is None:
            return None
        none: list[list[mx.array] | None] = [None] * len(past)
        return Rounds(run, state.get("rows", none), state.get("kept", 0))

    def _round(self, layer: Any, hidden: mx.array, now: HybridPass, rounds: Rounds) -> mx.array:
        net, place = layer.linear_attn, len(now.rows)
        old = rounds.old[place]

        def recurrence(x: mx.array, mask: Any, cache: Any) -> mx.array:
            rows = [getattr(net, name)(x) for name in self.projections]
            out, now.past[place] = run_round(
                net,
                rounds.run,
                now.past[place],
                None if old is None else self.projected(net, old),
                rounds.kept,
                self.projected(net, rows),
            )
            now.rows.append(rows)
            return out

        behind: mx.array = twin(layer, linear_attn=recurrence)(hidden, mask=None, cache=None)
        return behind

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
        self._repeat(net, rows, mask, view)
        return view.past

    def _settle_all(self, states: list[State]) -> list[list[Past]]:
        """Per recurrent layer, the states of several texts at the start of the pass."""
        nets = [layer.linear_attn for layer in self.layers if layer.is_linear]
        settled: list[list[Past]] = [[s["past"][i] for s in states] for i in range(len(nets))]
        waiting: dict[int, list[int]] = {}  # texts to replay, by how many rows they had
        for text, state in enumerate(states):
            if state.get("rows"):
                waiting.setdefault(state["rows"][0][0].shape[1], []).append(text)
        for size, texts in waiting.items():
            kept = mx.array([states[t]["kept"] for t in texts], mx.int32)
            mask = mx.arange(size) < kept[:, None]
            for i, net in enumerate(nets):
                parts = zip(*(states[t]["rows"][i] for t in texts), strict=True)
                rows = [mx.concatenate(list(part)) for part in parts]
                each = [RecurrentView(settled[i][t]) for t in texts]
                self._repeat(net, rows, mask, BatchedRecurrentView(each, kept))
                for text, view in zip(texts, each, strict=True):
                    settled[i][text] = view.past
        return settled

    def _repeat(self, net: Any, rows: list[mx.array], mask: mx.array | None, view: Any) -> None:
        """Run the recurrence over projected rows, for the state that `view` has then."""
        known = {name: Repeat(r) for name, r in zip(self.projections, rows, strict=True)}
        # Its output is dropped, so MLX computes the recurrence alone.
        twin(net, **known)(rows[0], mask=mask, cache=view)


def _passes_of(now: HybridPass, text: int) -> list[dict[str, Any]]:
    """What is kept of one text of several, per recurrent layer."""
    layers = [view for view in now.views if isinstance(view, BatchedRecurrentView)]
    return [
        {
            "before": now.past[i][text],
            "after": layer.each[text].past,
            "rows": [r[text : text + 1] for r in now.rows[i]] if now.rows else None,
        }
        for i, layer in enumerate(layers)
    ]
