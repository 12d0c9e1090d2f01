"""The target: a language model of mlx-lm, run so that a block can be verified and rolled back.

A family differs from this file in what its own file overrides. The layers are mlx-lm's and are
called as they are; only the walk over them is ours, because it has to hand out the residual
stream behind the tapped layers. Nothing of mlx-lm is replaced or wrapped: two targets with
different taps may share one model. Where a family must see inside a layer, it calls a twin of it:
a shallow copy with the same weights and another part in one place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from ..batched import BatchedView, Starts, States, collect, masks, views
from ..errors import PairError, UnsupportedError, UsageError
from ..kernels.choice import OFF, Kernels
from ..kernels.few_rows import few_rows
from ..kernels.head import Head
from ..kernels.head_topk import TopK
from ..kernels.linear import stored
from ..kv import KVCache, LayerView, Windows
from ..kv_quantised import KVBits
from ..ranks import ALONE, Ranks
from ..recurrent import Past
from ..sharding import layers_of
from ..span import Span
from .attending import Softmax, apart, attended
from .draft_head import DraftHead
from .experts import experts
from .rotation import Rotation


@dataclass
class Pass:
    """What the layers of one pass are called with, one of each per layer."""

    views: list[Any]
    masks: list[Any]
    rotation: Rotation = field(init=False)


class Target:
    """Plain attention over the layers of an mlx-lm model (llama, qwen3, qwen3_moe).

    Args:
        model: the model as `mlx_lm.load` returns it.
        taps: zero-based ids of the layers whose output makes up the features.
        kernels: what to run passes of few rows by.
        ranks: the processes that run it together; the model holds this one's part of it.
    """

    # How the kernel takes over a family's attention; None where it does not.
    softmax: Softmax | None = Softmax()
    # Whether `forward` takes several texts at once: all at the same position, as rows of one state,
    # or each at its own, with a list of states.
    batches = True
    # How keys and values are kept; None in the type they are computed in.
    kv: KVBits | None = None
    # The head as the draft sees it; None where that is the whole one.
    draft_head: DraftHead | None = None

    def __init__(
        self,
        model: Any,
        taps: Sequence[int] = (),
        kernels: Kernels = OFF,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model
        self.taps = tuple(taps)
        self.kernels = kernels
        self.ranks = ranks
        self.layers: list[Any] = self.backbone.layers
        self.stages = layers_of(model, ranks)
        if kernels.active:
            self.layers = [few_rows(layer, kernels, experts) for layer in self.layers]
        self._project = self._head()
        self.windows = self.layer_windows()
        # Also what is no parameter (rotary frequencies): MLX lets only the thread that built a
        # lazy array evaluate it, and another thread may be the first to generate.
        mx.eval([v for m in model.modules() for v in m.values() if isinstance(v, mx.array)])
        if self.taps and max(self.taps) >= self.stages[-1].stop:
            raise PairError(
                f"the draft taps target layer {max(self.taps)}, but the target has only "
                f"{self.stages[-1].stop} layers; it was made for another target"
            )

    # What a family may override.

    @property
    def language_model(self) -> Any:
        """The module with `args`, `model` and `lm_head`: a part of a model that also sees."""
        return self.model

    @property
    def unquantised(self) -> str | None:
        """Why keys and values cannot be quantised; None where they can."""
        return None

    @property
    def backbone(self) -> Any:
        """The module with `embed_tokens`, `layers` and `norm`."""
        return self.language_model.model

    def layer_windows(self) -> Windows:
        """Per attention layer: its sliding window, None where attention is full."""
        return (None,) * len(self.layers)

    def window_of(self, index: int) -> int | None:
        """The sliding window of layer `index`, if it attends at all."""
        window = self.windows[index]
        assert not isinstance(window, Span)  # those are drafts'
        return window

    def embed(self, ids: mx.array) -> mx.array:
        """Token ids [B, L] to what the first layer gets [B, L, hidden_size]."""
        return self.embed_block(ids)

    @property
    def embed_scale(self) -> float:
        """What the rows of the table are multiplied by, for the draft too."""
        return 1.0

    def embed_block(self, ids: mx.array) -> mx.array:
        """Token ids [B, L] to what a draft's block is made of [B, L, hidden_size]."""
        rows: mx.array = self.backbone.embed_tokens(ids)
        return rows if self.embed_scale == 1.0 else rows * self.embed_scale

    def head(self, hidden: mx.array) -> mx.array:
        """The bare projection [B, L, hidden_size] to [B, L, vocab_size].

        A draft scales and soft-caps what comes out as its own config says.
        """
        projected: mx.array = self._project(hidden)
        return projected

    def logits(self, hidden: mx.array) -> mx.array:
        """Hidden states of `forward` to the target's own logits [B, L, vocab_size]."""
        return self.head(hidden)

    def best(self, hidden: mx.array, count: int = 1, limit: int | None = None) -> TopK | None:
        """The largest of `head` alone, by a kernel; None where none pays.

        `logits` grows with what `head` returns in every family, so their order is the same.

        Args:
            hidden: [L, hidden_size].
            count: how many of each row.
            limit: only the first so many rows of the head stand for tokens; all if None.
        """
        return self._project.best(hidden, count, limit) if isinstance(self._project, Head) else None

    def draft_logits(self, hidden: mx.array, shape: Callable[[mx.array], mx.array]) -> mx.array:
        """The draft's hidden states [B, L, hidden_size] to its logits [B, L, vocab_size].

        Args:
            hidden: in any type.
            shape: what the draft makes of bare logits (`DFlashDraft.shape_logits`).
        """
        hidden = hidden.astype(self.dtype)
        if self.draft_head is not None:
            return self.draft_head.logits(hidden, shape)
        return shape(self.head(hidden))

    def best_drafts(self, hidden: mx.array, count: int, limit: int | None) -> TopK | None:
        """As `best`, of what the draft may propose; a vocabulary of its own is within `limit`."""
        if self.draft_head is not None:
            return self.draft_head.best(hidden, count)
        return self.best(hidden, count, limit)

    def new_cache(self) -> KVCache:
        """An empty cache for one generation."""
        return KVCache(self.windows)

    def past(self, cache: KVCache) -> list[Past]:
        """Per recurrent layer, its state behind all that is committed; nothing computed yet."""
        return []

    def open(self, ids: mx.array, start: Starts, state: States) -> Pass:
        """What the layers of a pass over `ids` from position `start` on are called with."""
        seen = masks(self.windows, state, start, ids.shape[1], apart=self.softmax is not None)
        return Pass(self.views(state, start), seen)

    def views(self, state: States, start: Starts) -> list[Any]:
        """What layers that attend are given as their cache."""
        return views(self.windows, state, start, self.kv.view if self.kv else LayerView)

    def run(self, index: int, hidden: mx.array, now: Pass) -> mx.array:
        """One layer: the residual stream [1, L, hidden_size] before it to that behind it."""
        layer = now.rotation.shared(self.layers[index])
        view, mask = now.views[index], now.masks[index]
        if self.softmax and isinstance(view, BatchedView):
            layer, view, mask = apart(layer, view, mask, hidden.shape[1], self.softmax)
        elif self.softmax and self.kv is None and isinstance(view, LayerView):
            heads, window = self.language_model.args.num_attention_heads, self.window_of(index)
            layer, view, mask = attended(
                layer, view, mask, hidden.shape[1], heads, window, self.softmax, self.kernels
            )
        behind: mx.array = layer(hidden, mask=mask, cache=view)
        return behind

    def close(self, state: States, now: Pass) -> Any:
        """The state after the pass; a list of them for several texts."""
        return collect(state, now.views)

    # What the decode loop uses.

    def forward(
        self, ids: mx.array, start: Starts, state: States
    ) -> tuple[mx.array, mx.array | None, Any]:
        """One pass over `ids`, the first at position `start`: prefill or verification.

        Args:
            ids: int32 [B, L], with B = 1 but for several texts.
            start: position of the first id; an int, or an int32 scalar in a compiled pass; of
                several texts a list of ints.
            state: what the cache's `begin` returned; of several texts a list.

        Returns:
            hidden states for `logits` [B, L, hidden_size]; features [B, L, taps * hidden_size] of
            the residual stream behind each tapped layer, or None without taps; the new state, or
            a list of them.
        """
        now = self.open(ids, start, state)
        now.rotation = Rotation(start)
        hidden = self.embed(ids)
        tapped: list[mx.array] = []
        for source, stage in enumerate(self.stages):
            taps = [tap for tap in self.taps if tap in stage]
            if source == self.ranks.stage:
                hidden, here = self._walk(hidden, now, [tap - stage.start for tap in taps])
            else:
                here = [hidden] * len(taps)
            if len(self.stages) > 1:
                hidden, *here = self._passed_on([hidden, *here], source)
            tapped += here
        features = mx.concatenate(tapped, axis=-1) if tapped else None
        return self.backbone.norm(hidden), features, self.close(state, now)

    def _walk(
        self, hidden: mx.array, now: Pass, taps: Sequence[int]
    ) -> tuple[mx.array, list[mx.array]]:
        """The layers that are here: what is behind the last one, and behind the tapped ones."""
        tapped = []
        for index in range(len(self.layers)):
            hidden = self.run(index, hidden, now)
            if index in taps:
                tapped.append(hidden)
        return hidden, tapped

    def _passed_on(self, hidden: list[mx.array], source: int) -> list[mx.array]:
        """What rank `source` has of these, each [1, L, hidden_size]."""
        return list(self.ranks.take(mx.stack(hidden), source))

    def with_kernels(self, kernels: Kernels) -> Self:
        """The same model, run by these kernels; caches fit both."""
        same = type(self)(self.model, self.taps, kernels, self.ranks)
        same.kv, same.batches = self.kv, self.batches
        return same._with_draft_head(self)

    def _with_draft_head(self, other: Target) -> Self:
        return self.with_draft_vocabulary(other.draft_head.ids if other.draft_head else None)

    def with_draft_vocabulary(self, ids: mx.array | None) -> Self:
        """The same model, for a draft that proposes these tokens alone (int32 [n], ascending).

        Where the processes share the vocabulary, the draft sees all of it: none has all the rows.
        """
        whole = self._head_module["weight"].shape[0] == self.vocab_size
        if ids is None or not whole:
            return self
        same = copy.copy(self)
        same.draft_head = DraftHead(self._head_module, ids, self.kernels)
        return same

    def with_kv(self, kv: KVBits) -> Self:
        """The same model, which keeps keys and values in fewer bits; caches fit this one only.

        Raises:
            UnsupportedError: attention of this family does not take them.
            UsageError: the group does not fit its heads.
        """
        if self.unquantised:
            raise UnsupportedError(
                f"{self.model.model_type}: keys and values cannot be quantised, as "
                f"{self.unquantised}; leave out --kv-bits"
            )
        same = type(self)(self.model, self.taps, self.kernels, self.ranks)
        # Several texts in one pass attend by MLX's own attention, to keys and values in full.
        same.kv, same.batches = kv, False
        try:
            # Nothing is computed: shapes are checked when a pass is built.
            state = same.new_cache().begin(0, 1, fixed=False)
            same.forward(mx.zeros((1, 1), mx.int32), 0, state)
        except ValueError as error:
            raise UsageError(
                f"--kv-bits {kv.bits} in groups of {kv.group} does not fit the heads of "
                f"{self.model.model_type}; try another --kv-group-size ({error})"
            ) from error
        return same._with_draft_head(self)

    def head_rows(self, ids: mx.array) -> mx.array:
        """The rows of the head's matrix for some tokens [n, hidden_size], dense."""
        return dense(self._head_module, ids)

    @property
    def _head_module(self) -> Any:
        if "lm_head" in self.language_model:
            return self.language_model.lm_head
        return self.backbone.embed_tokens

    def _head(self) -> Any:
        """What the bare projection calls."""
        module = self._head_module
        call = module if "lm_head" in self.language_model else module.as_linear
        weight = stored(module) if self.kernels.active else None
        return call if weight is None else Head(module, weight, self.kernels, call)

    @property
    def dtype(self) -> mx.Dtype:
        """The floating type of the residual stream."""
        dtype: mx.Dtype = self.backbone.norm.weight.dtype
        return dtype

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        size: int = self.backbone.norm.weight.shape[0]
        return size

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, padding rows included."""
        table: nn.Embedding = self.backbone.embed_tokens
        return int(table.weight.shape[0])


def dense(module: nn.Module, rows: mx.array | None = None) -> mx.array:
    """The weight of a layer, or some of its rows, as a plain matrix."""
    names = [name for name in ("weight", "scales", "biases") if name in module]
    parts: dict[str, mx.array] = {
        name: module[name] if rows is None else module[name][rows] for name in names
    }
    if "scales" not in parts:
        return parts["weight"]
    return mx.dequantize(
        parts["weight"],
        parts["scales"],
        parts.get("biases"),
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
    )


def soft_cap(logits: mx.array, cap: float) -> mx.array:
    """Squeeze logits into -cap..cap, as Gemma 2 does (arXiv 2408.00118, section 2)."""
    return mx.tanh(logits / cap) * cap
