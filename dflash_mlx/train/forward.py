"""The draft over many blocks at once: the layers of `drafts/`, called another way than in decoding.

Decoding runs one block over a cache. Here N blocks at N anchors run over texts that are known to
their end: the context's keys and values are computed once per text, and what hides from a block
the part behind its anchor is a mask. Scores against the context are one product for all blocks of
a text; those inside the blocks are a small product a block.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..config import DraftConfig
from ..drafts.dflash import Attention, DFlashDraft, Layer
from ..drafts.dflash2 import ConvolvedLayer
from ..drafts.rope import Rotary
from .dflash2 import convolved
from .packing import Pack, Span


def hidden_states(
    draft: DFlashDraft,
    embedded: mx.array,
    features: mx.array,
    pack: Pack,
    *,
    save_memory: bool = False,
) -> mx.array:
    """What the target's head gets for the rows that predict something.

    Args:
        draft: the network; it need not be prepared for decoding.
        embedded: the target's embeddings of `pack.blocks` [N, b, hidden_size].
        features: the target's features of the pack's tokens [S, taps * hidden_size].
        pack: the blocks.
        save_memory: compute each layer a second time for its gradient instead of keeping what it
            needs.

    Returns:
        [N, b - 1, hidden_size], normalised.
    """
    config = draft.config
    context = draft.hidden_norm(draft.fc(features.astype(draft.dtype)[None]))
    x = embedded.astype(draft.dtype) * config.input_embedding_scale
    for index, layer in enumerate(draft.layers):
        run = _Layer(layer, config, index, pack)
        x = (nn.utils.checkpoint(layer, run) if save_memory else run)(x, context)
    behind: mx.array = draft.norm(x)
    return behind[:, 1:]


class _Layer:
    """One layer over the blocks of a pack."""

    def __init__(self, layer: Layer, config: DraftConfig, index: int, pack: Pack) -> None:
        self.layer = layer
        self.pack = pack
        self.window, self.causal = config.windows[index], config.causal[index]
        self.rotary = Rotary(config.rope, config.head_dim)

    def __call__(self, x: mx.array, context: mx.array) -> mx.array:
        """Blocks [N, b, hidden_size] over context rows [1, S, hidden_size]."""
        layer = self.layer

        def attend(rows: mx.array) -> mx.array:
            return self._attend(rows, context)

        if isinstance(layer, ConvolvedLayer):
            x = convolved(layer.attention_conv, layer.input_layernorm(x), attend, x)
            return convolved(layer.mlp_conv, layer.post_attention_layernorm(x), layer.mlp, x)
        x = x + attend(layer.input_layernorm(x))
        return x + layer.mlp(layer.post_attention_layernorm(x))

    def _attend(self, rows: mx.array, context: mx.array) -> mx.array:
        net = self.layer.self_attn
        anchors, places = mx.array(self.pack.anchors), mx.array(self.pack.positions)
        queries = self.rotary(net.q_norm(_heads(net, net.q_proj(rows))), anchors)
        keys = self.rotary(net.k_norm(_heads(net, net.k_proj(rows))), anchors)
        values = _heads(net, net.v_proj(rows))
        # Every context row a batch of its own, since each has its own position: [S, heads, 1, d].
        tokens = context.swapaxes(0, 1)
        seen_keys = self.rotary(net.k_norm(_heads(net, net.k_proj(tokens))), places)
        seen_values = _heads(net, net.v_proj(tokens))
        out = []
        for span in self.pack.spans:
            own = Rows(queries[span.blocks], keys[span.blocks], values[span.blocks])
            seen = [a[span.tokens, :, 0].swapaxes(0, 1) for a in (seen_keys, seen_values)]
            out.append(attention(own, seen[0], seen[1], self._masks(span), net.scale))
        joined = mx.concatenate(out).transpose(0, 2, 1, 3)
        return net.o_proj(joined.reshape(*rows.shape[:2], -1))

    def _masks(self, span: Span) -> tuple[mx.array, mx.array]:
        """Which context rows [n, b, S] and which rows of its block [b, b] a row sees."""
        size = self.pack.blocks.shape[1]
        anchors = mx.array(self.pack.anchors[span.blocks])[:, None, None]
        key = mx.arange(span.tokens.stop - span.tokens.start)
        row = mx.arange(size)
        query = anchors + row[:, None]
        context = mx.broadcast_to(key < anchors, (*query.shape[:2], key.size))
        block = row <= row[:, None] if self.causal else mx.ones((size, size), mx.bool_)
        if self.window is not None:
            context = context & (key > query - self.window)
            block = block & (row > row[:, None] - self.window)
        return context, block


class Rows(NamedTuple):
    """Rows of n blocks: queries [n, heads, b, d], keys and values [n, kv_heads, b, d]."""

    queries: mx.array
    keys: mx.array
    values: mx.array


def attention(
    own: Rows,
    seen_keys: mx.array,
    seen_values: mx.array,
    masks: tuple[mx.array, mx.array],
    scale: float,
) -> mx.array:
    """Attention of n blocks, each over a context they share and over itself.

    Args:
        own: the blocks.
        seen_keys, seen_values: the context [kv_heads, S, d].
        masks: which context rows bool [n, b, S] and which of the block bool [b, b] a row sees.

    Returns:
        [n, heads, b, d].
    """
    n, heads, size, dim = own.queries.shape
    groups = heads // own.keys.shape[1]
    # [kv_heads, n, groups, b, d]: the heads that share keys side by side.
    q = own.queries.reshape(n, -1, groups, size, dim).swapaxes(0, 1) * scale
    k, v = (a.swapaxes(0, 1)[:, :, None] for a in (own.keys, own.values))
    flat = q.reshape(q.shape[0], -1, dim)
    outer = (flat @ seen_keys.swapaxes(1, 2)).reshape(*q.shape[:-1], -1)
    outer = mx.where(masks[0][:, None], outer, -mx.inf)
    inner = mx.where(masks[1], q @ k.swapaxes(-1, -2), -mx.inf)
    weights = mx.softmax(mx.concatenate([outer, inner], axis=-1), axis=-1, precise=True)
    outer, inner = mx.split(weights, [seen_keys.shape[1]], axis=-1)
    out = outer.reshape(q.shape[0], -1, outer.shape[-1]) @ seen_values
    out = out.reshape(q.shape) + inner @ v
    joined: mx.array = out.swapaxes(0, 1).reshape(n, heads, size, dim)
    return joined


def _heads(net: Attention, x: mx.array) -> mx.array:
    return x.reshape(*x.shape[:2], -1, net.head_dim).transpose(0, 2, 1, 3)
