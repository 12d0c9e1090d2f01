"""DFlash 1: a small transformer that proposes a block of tokens in one pass.

The target's features are fused to one context row per committed token (`fc`, `hidden_norm`).
Every layer turns that row into keys and values of its own and keeps them: they are the draft's
memory, computed once per committed token. A block is the anchor's embedding followed by mask
embeddings; its rows attend to the context and, unless a layer is causal, to each other. The
target's own embedding and head serve the draft (paper: arXiv 2602.06036, section 3).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention

from ..batched import BatchedView, Starts, States, collect, masks, views
from ..config import CANDIDATES, DraftConfig
from ..errors import CheckpointError, UsageError
from ..kernels.attend import attend
from ..kernels.choice import OFF, Kernels
from ..kernels.few_rows import few_rows
from ..kv import KVCache, LayerView, Scalar
from ..kv_quantised import KVBits, QuantisedView
from ..sampling import Sampling, log_distribution
from ..span import Span
from .joined import Joined
from .rope import Rotary, Rotate
from .shortlist import Candidates, Proposal, Shortlist, Wanted, largest


class Attention(nn.Module):
    """Attention of a block over the context and itself. One set of K/V weights serves both."""

    def __init__(self, config: DraftConfig, index: int) -> None:
        super().__init__()
        self.kernels = OFF
        self.window, self.ahead = config.spans[index], not config.causal[index]
        bias = config.attention_bias
        query_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.scale = config.head_dim**-0.5
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=bias)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def __call__(self, rows: mx.array, rotary: Rotate, view: Any, mask: Any) -> mx.array:
        queries = rotary(self.q_norm(self._heads(self.q_proj(rows))), view.offset)
        keys = rotary(self.k_norm(self._heads(self.k_proj(rows))), view.offset)
        out = self._attend(queries, keys, self._heads(self.v_proj(rows)), view, mask)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(*rows.shape[:2], -1))

    def _attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        view: Any,
        mask: Any,
    ) -> mx.array:
        if isinstance(view, BatchedView):
            return view.attend(queries, keys, values, mask, scale=self.scale)
        if isinstance(view, QuantisedView):
            packed = view.update_and_fetch(keys, values)
            attended: mx.array = scaled_dot_product_attention(
                queries, *packed, view, scale=self.scale, mask=mask
            )
            return attended
        run = None
        if view.rows is not None and not isinstance(self.window, Span):
            _, heads, rows, _ = queries.shape
            run = attend(
                self.kernels, view.rows[0], rows, heads, window=self.window, ahead=self.ahead
            )
        if run is None:
            keys, values = view.update_and_fetch(keys, values)
            return mx.fast.scaled_dot_product_attention(
                queries, keys, values, scale=self.scale, mask=mask
            )
        out: mx.array = run(queries, *view.write(keys, values), view.slot, scale=self.scale)
        return out

    def _heads(self, x: mx.array) -> mx.array:
        # [1, L, heads * head_dim] -> [1, heads, L, head_dim]; norms act on the last axis.
        return x.reshape(*x.shape[:2], -1, self.head_dim).transpose(0, 2, 1, 3)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm transformer layer; `index` is its place among the draft's."""

    def __init__(self, config: DraftConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, index)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def __call__(self, x: mx.array, rotary: Rotate, view: Any, mask: Any) -> mx.array:
        """The residual stream of a block [1, L, hidden_size] before the layer to that behind."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, view, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class ContextProjection:
    """Context rows to keys and values of all layers at once.

    One matrix product and one rotation instead of one per layer. The layers' own K/V weights
    become views of the joined ones, so nothing is held twice.
    """

    def __init__(self, layers: Sequence[Layer], config: DraftConfig) -> None:
        attention = [layer.self_attn for layer in layers]
        self.joined = Joined([a.k_proj for a in attention] + [a.v_proj for a in attention])
        heads = config.num_kv_heads
        # [layers * kv_heads, 1, head_dim]: every layer has a norm of its own.
        self.k_norm = mx.repeat(mx.stack([a.k_norm.weight for a in attention]), heads, 0)[:, None]
        self.eps = config.rms_norm_eps
        self.shape = (2, len(layers), heads, config.head_dim)

    def with_kernels(self, kernels: Kernels) -> Self:
        """The same projection, run by these kernels where they pay."""
        copied = copy.copy(self)
        copied.joined = self.joined.with_kernels(kernels)
        return copied

    def __call__(
        self, rows: mx.array, rotary: Rotary, start: Scalar
    ) -> list[tuple[mx.array, mx.array]]:
        """[B, L, hidden_size] to (keys, values) per layer, each [B, kv_heads, L, head_dim]."""
        kinds, layers, heads, dim = self.shape
        both = self.joined(rows).reshape(*rows.shape[:2], kinds, layers * heads, dim)
        both = both.transpose(2, 0, 3, 1, 4)  # [kinds, B, layers * kv_heads, L, head_dim]
        keys = rotary(mx.fast.rms_norm(both[0], None, self.eps) * self.k_norm, start)
        per_layer = [slice(i * heads, (i + 1) * heads) for i in range(layers)]
        return [(keys[:, part], both[1][:, part]) for part in per_layer]


class DFlashDraft(nn.Module):
    """The draft network. Parameter names are those of the published checkpoints."""

    # How keys and values of its context are kept; None in the type they are computed in.
    kv: KVBits | None = None

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.fc = nn.Linear(len(config.taps) * size, size, bias=False)
        self.hidden_norm = nn.RMSNorm(size, eps=config.rms_norm_eps)
        self.layers = [self.new_layer(config, index) for index in range(config.num_layers)]
        self.norm = nn.RMSNorm(size, eps=config.rms_norm_eps)
        if config.draft_vocab_size is not None:
            self.draft_vocabulary = mx.arange(config.draft_vocab_size, dtype=mx.int32)
            self.freeze(recurse=False, keys=["draft_vocabulary"])
        self._config = config
        self._rotary = Rotary(config.rope, config.head_dim)
        self._project: ContextProjection | None = None

    def new_layer(self, config: DraftConfig, index: int) -> Layer:
        """One of the draft's layers."""
        return Layer(config, index)

    def prepare(self) -> Self:
        """Arrange the weights for decoding, once they have their final values and types.

        Raises:
            CheckpointError: the draft's vocabulary is no ascending list of tokens.
        """
        self._check_vocabulary()
        self._project = ContextProjection(self.layers, self._config)
        mx.eval(self.parameters(), self._project.k_norm, self._rotary.periods)
        return self

    def with_kernels(self, kernels: Kernels) -> Self:
        """The same draft, run by these kernels; a context fits both. `prepare` comes first."""
        assert self._project is not None
        copied: Self = few_rows(self, kernels)
        copied._project = self._project.with_kernels(kernels)
        return copied

    def with_kv(self, kv: KVBits) -> Self:
        """The same draft, whose context is kept in fewer bits; contexts fit this one only.

        Raises:
            UsageError: the group does not fit its heads.
        """
        if self._config.head_dim % kv.group:
            raise UsageError(
                f"--draft-kv-bits in groups of {kv.group} does not fit the draft's heads of "
                f"{self._config.head_dim}; try another --kv-group-size"
            )
        same = copy.copy(self)
        same.kv = kv
        return same

    @property
    def config(self) -> DraftConfig:
        """What this draft is."""
        return self._config

    @property
    def dtype(self) -> mx.Dtype:
        """The floating type the draft computes in."""
        dtype: mx.Dtype = self.norm.weight.dtype
        return dtype

    @property
    def vocabulary(self) -> mx.array | None:
        """The tokens it can propose, int32 [draft_vocab_size], ascending; None for all."""
        return self.get("draft_vocabulary")

    def _check_vocabulary(self) -> None:
        ids = self.vocabulary
        if ids is None:
            return
        ascending = mx.all(ids[1:] > ids[:-1]) & (ids[0] >= 0) & (ids[-1] < self._config.vocab_size)
        if ids.dtype != mx.int32 or not ascending.item():
            raise CheckpointError(
                f"draft_vocabulary holds {ids.dtype}, expected ascending int32 ids from 0 to "
                f"{self._config.vocab_size - 1}"
            )

    def new_cache(self) -> KVCache:
        """An empty context for one generation."""
        return KVCache(self._config.spans)

    def extend(self, features: mx.array, start: Starts, state: States) -> Any:
        """Add committed tokens to the context.

        Args:
            features: [B, L, taps * hidden_size], the target's, from position `start` on.
            start: position of the first row; of several texts a list.
            state: the context cache's state; of several texts a list.
        """
        assert self._project is not None, "prepare() comes first"
        rows = self.hidden_norm(self.fc(features.astype(self.dtype)))
        layer_views = self._views(state, start)
        projected = self._project(rows, self._rotary, layer_views[0].offset)
        for view, (keys, values) in zip(layer_views, projected, strict=True):
            view.update_and_fetch(keys, values)
        return collect(state, layer_views)

    def forward(self, block: mx.array, start: Starts, state: States) -> tuple[mx.array, Any]:
        """One pass over a block, its anchor at position `start`.

        The block's own keys and values land behind the context, where the next `extend` or
        block overwrites them: the context is never copied.

        Args:
            block: the target's embeddings of anchor and masks [B, L, hidden_size].
            start: position of the anchor, the number of context rows; of several texts a list.
            state: the context cache's state; of several texts a list.

        Returns:
            hidden states for the target's head [B, L, hidden_size]; the new state, or a list.
        """
        config = self._config
        layer_views = self._views(state, start)
        ahead = [not causal for causal in config.causal]
        layer_masks = masks(config.spans, state, start, block.shape[1], ahead, apart=True)
        x = block.astype(self.dtype) * config.input_embedding_scale
        rotary = self._rotary.at(start)
        for layer, view, mask in zip(self.layers, layer_views, layer_masks, strict=True):
            x = layer(x, rotary, view, mask)
        return self.norm(x), collect(state, layer_views)

    def _views(self, state: States, start: Starts) -> list[Any]:
        return views(self._config.spans, state, start, self.kv.view if self.kv else LayerView)

    def shape_logits(self, logits: mx.array) -> mx.array:
        """Scale and soft-cap the head's logits as the config says, in float32."""
        logits = logits.astype(mx.float32) * self._config.output_multiplier
        cap = self._config.final_logit_softcapping
        return logits if not cap else mx.tanh(logits / cap) * cap

    def wanted(self, sampling: Sampling) -> Wanted | None:
        """Which logits `propose` looks at; None for all."""
        return Wanted(1) if sampling.greedy else None

    def propose(
        self,
        hidden: mx.array,
        logits: mx.array | Shortlist,
        anchor: mx.array,
        sampling: Sampling,
        key: mx.array,
    ) -> Proposal:
        """Choose the drafted tokens; here each place by itself.

        Args:
            hidden: [width - 1, hidden_size], what `forward` returned for the masks.
            logits: float32 [width - 1, vocab], shaped, with bias and penalties applied; or the
                largest of them, as `wanted` asks for.
            anchor: int32 [1].
            sampling: how the target's tokens are chosen.
            key: random key.
        """
        if isinstance(logits, Shortlist):
            return Proposal(logits.ids[:, 0], None, logits.logits)
        if sampling.greedy:
            return Proposal(mx.argmax(logits, axis=-1).astype(mx.int32), None, logits)
        logq = log_distribution(logits, sampling)
        return Proposal(mx.random.categorical(logq, key=key).astype(mx.int32), logq, logq)

    def eligible(self) -> Wanted:
        """Which logits `candidates` looks at."""
        return Wanted(CANDIDATES)

    def candidates(
        self, hidden: mx.array, logits: mx.array | Shortlist, anchor: mx.array
    ) -> Candidates:
        """What somebody else may choose from: here each place's most probable tokens.

        Args:
            hidden, anchor: as `propose` takes them.
            logits: as `propose` takes them, or those that are `eligible`.
        """
        if not isinstance(logits, Shortlist):
            logits = largest(logits, min(CANDIDATES, logits.shape[-1]))
        # By id, however they were found: their order decides what a seed draws.
        order = mx.argsort(logits.ids, axis=-1)
        ids, scores = (mx.take_along_axis(part, order, axis=-1) for part in logits)
        return Candidates(ids, scores[:, None])
