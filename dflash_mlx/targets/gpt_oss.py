"""gpt-oss: sliding and full layers in turn, each with attention sinks.

A sink is a logit per head that takes part in the softmax and has no value. It lives inside
mlx-lm's layer, so nothing is to be done about it here.
"""

from ..kv import Windows
from .attending import Softmax
from .base import Target


class GptOssTarget(Target):
    """`model_type: gpt_oss`."""

    softmax = Softmax("sm_scale", "sinks")

    @property
    def unquantised(self) -> str:
        """Sinks."""
        return "mlx-lm's attention to quantised ones takes no sinks"

    def layer_windows(self) -> Windows:
        """Per layer: its sliding window, None where attention is full."""
        window = self.backbone.window_size
        kinds = [self.backbone.layer_types[index] for index in self.stages[self.ranks.stage]]
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
