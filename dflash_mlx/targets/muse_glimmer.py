"""Muse Glimmer: three sliding layers, then a full one without positions.

Token embeddings are normalised before the first layer, logits are scaled and soft-capped. A draft
gets neither: its block is made of the bare table, and its own config states multiplier and cap.
Both published implementations do so, and Transformers keeps the norm out of the table for it.
"""

import mlx.core as mx

from ..kv import Windows
from .base import Target, soft_cap


class MuseGlimmerTarget(Target):
    """`model_type: muse_glimmer`, and `muse_glimmer_text` where a config nests its text part."""

    softmax = None  # some layers rotate nothing

    def layer_windows(self) -> Windows:
        """Per layer: its sliding window, None where attention is full."""
        window = self.backbone.window
        return tuple(window if layer.self_attn.is_sliding else None for layer in self.layers)

    def embed(self, ids: mx.array) -> mx.array:
        """Token ids [B, L] to normalised embeddings [B, L, hidden_size]."""
        return mx.fast.rms_norm(self.embed_block(ids), None, self.backbone.embed_eps)

    def logits(self, hidden: mx.array) -> mx.array:
        """Scaled, then soft-capped."""
        args = self.language_model.args
        return soft_cap(self.head(hidden) * args.output_multiplier, args.final_logit_softcapping)
