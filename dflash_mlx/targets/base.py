"""The target: a language model of mlx-lm, run so that a block can be verified and rolled back.

A family differs from this file in what its own file overrides. The layers are mlx-lm's and are
called as they are; only the walk over them is ours, because it has to hand out the residual
stream behind the tapped layers. Nothing of mlx-lm is replaced or wrapped: two targets with
different taps may share one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import PairError
from ..kv import KVCache, Scalar, State, Windows, collect, masks, views


class Target:
    """Plain attention over the layers of an mlx-lm model (llama, qwen3, qwen3_moe).

    Args:
        model: the model as `mlx_lm.load` returns it.
        taps: zero-based ids of the layers whose output makes up the features.
    """

    def __init__(self, model: Any, taps: Sequence[int] = ()) -> None:
        self.model = model
        self.taps = tuple(taps)
        self.layers: list[Any] = self.backbone.layers
        self.windows = self.layer_windows()
        # Also what is no parameter (rotary frequencies): MLX lets only the thread that built a
        # lazy array evaluate it, and another thread may be the first to generate.
        mx.eval([v for m in model.modules() for v in m.values() if isinstance(v, mx.array)])
        if self.taps and max(self.taps) >= len(self.layers):
            raise PairError(
                f"the draft taps target layer {max(self.taps)}, but the target has only "
                f"{len(self.layers)} layers; it was made for another target"
            )

    # What a family may override.

    @property
    def backbone(self) -> Any:
        """The module with `embed_tokens`, `layers` and `norm`."""
        return self.model.model

    def layer_windows(self) -> Windows:
        """Per layer: its sliding window, None where attention is full."""
        return (None,) * len(self.layers)

    def embed(self, ids: mx.array) -> mx.array:
        """Token ids [B, L] to embeddings [B, L, hidden_size]."""
        embeddings: mx.array = self.backbone.embed_tokens(ids)
        return embeddings

    def head(self, hidden: mx.array) -> mx.array:
        """Normalised hidden states [B, L, hidden_size] to logits [B, L, vocab_size]."""
        if self.model.args.tie_word_embeddings:
            logits: mx.array = self.backbone.embed_tokens.as_linear(hidden)
        else:
            logits = self.model.lm_head(hidden)
        return logits

    # What the decode loop uses.

    def new_cache(self) -> KVCache:
        """An empty cache for one generation."""
        return KVCache(self.windows)

    def forward(
        self, ids: mx.array, start: Scalar, state: State
    ) -> tuple[mx.array, mx.array | None, State]:
        """One pass over `ids`, the first at position `start`: prefill or verification.

        Args:
            ids: int32 [1, L].
            start: position of the first id; an int, or an int32 scalar in a compiled pass.
            state: the cache's state, `fixed()` in a compiled pass.

        Returns:
            hidden states for `head` [1, L, hidden_size]; features [1, L, taps * hidden_size] of
            the residual stream behind each tapped layer, or None without taps; the new state.
        """
        layer_views = views(self.windows, state, start)
        layer_masks = masks(self.windows, state, start, ids.shape[1])
        hidden = self.embed(ids)
        tapped = []
        for i, layer in enumerate(self.layers):
            hidden = layer(hidden, mask=layer_masks[i], cache=layer_views[i])
            if i in self.taps:
                tapped.append(hidden)
        features = mx.concatenate(tapped, axis=-1) if tapped else None
        return self.backbone.norm(hidden), features, collect(state, layer_views)

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
