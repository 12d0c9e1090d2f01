"""Gemma 4: dense, mixture of experts, and the small kind with shared keys and per-layer inputs.

Embeddings are scaled by the root of the hidden size, for the draft's block too: it was trained on
them (vllm-project/vllm#41703), and the published MLX implementation does so. Logits are
soft-capped; the draft's config has a cap of its own.

In the small kind (E2B, E4B) the last layers have no keys and values: each attends to those of the
last layer of its kind that has, and every layer gets an embedding of its own per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..batched import Starts, States
from ..kv import Windows
from .base import Pass, Target, soft_cap


@dataclass
class GemmaPass(Pass):
    """`views` and `masks` go by the layers that have keys and values of their own.

    Attributes:
        inputs: per layer, its own embedding of the tokens [1, L, size], or None.
        shared: per layer run so far, what it attended to: keys, values and the first position.
    """

    inputs: list[mx.array | None]
    shared: dict[int, tuple[Any, Any]]


class Gemma4Target(Target):
    """`model_type: gemma4` and `gemma4_unified`, and `gemma4_text` for the text part alone."""

    softmax = None  # layers hand their keys and values on to others

    @property
    def unquantised(self) -> str | None:
        """Layers that share keys and values get them without the cache that says how to read."""
        shared = len(self.windows) < len(self.layers)
        return "its last layers attend to those of others" if shared else None

    @property
    def language_model(self) -> Any:
        """The text part."""
        return self.model.language_model if "language_model" in self.model else self.model

    def layer_windows(self) -> Windows:
        """Per layer with keys and values: its sliding window, None where attention is full."""
        window = self.backbone.window_size
        own = [layer.self_attn for layer in self.layers if layer.self_attn.has_kv]
        return tuple(window if attention.is_sliding else None for attention in own)

    @property
    def embed_scale(self) -> float:
        """The root of the hidden size."""
        scale: float = self.backbone.embed_scale
        return scale

    def logits(self, hidden: mx.array) -> mx.array:
        """Soft-capped where the config says so."""
        cap = self.language_model.final_logit_softcapping
        return self.head(hidden) if cap is None else soft_cap(self.head(hidden), cap)

    def open(self, ids: mx.array, start: Starts, state: States) -> GemmaPass:
        """Views, masks and what each layer gets of its own."""
        now = super().open(ids, start, state)
        return GemmaPass(now.views, now.masks, self._inputs(ids), {})

    def run(self, index: int, hidden: mx.array, now: Pass) -> mx.array:
        """One layer, with its own keys and values or those of the layer it shares with."""
        assert isinstance(now, GemmaPass)
        source = self.backbone.previous_kvs[index]  # the layer itself where it has its own
        shared, offset = now.shared.get(source, (None, None))
        hidden, keys_values, offset = self.layers[index](
            hidden,
            mask=now.masks[source],
            cache=now.views[index] if index == source else None,
            per_layer_input=now.inputs[index],
            shared_kv=shared,
            offset=offset,
        )
        now.shared[index] = (keys_values, offset)
        return hidden

    def _inputs(self, ids: mx.array) -> list[mx.array | None]:
        backbone = self.backbone
        if not backbone.hidden_size_per_layer_input:
            return [None] * len(self.layers)
        rows = backbone._project_per_layer_inputs(
            self.embed(ids), backbone._get_per_layer_inputs(ids)
        )
        return [rows[:, :, index] for index in range(len(self.layers))]
