"""Llama: full attention, or full and sliding layers in turn where the config says so.

Both kinds roll back by length alone; a sliding layer's cache keeps a little more than its window
and drops the oldest rows only, so the rows of a rejected block never displace visible ones.
"""

from ..kv import Windows
from .base import Target


class LlamaTarget(Target):
    """`model_type: llama`."""

    def layer_windows(self) -> Windows:
        """Per layer: its sliding window, None where attention is full."""
        window = self.backbone.sliding_window
        return tuple(window if layer.use_sliding else None for layer in self.layers)
