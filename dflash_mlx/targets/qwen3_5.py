"""Qwen3.5, 3.6 and 3.8, dense and MoE: the text part of a model that also sees."""

from typing import Any

import mlx.core as mx
from mlx_lm.models.base import gather_last_axis

from .delta_round import Projected
from .gated_delta import GatedDeltaTarget


class Qwen35Target(GatedDeltaTarget):
    """`model_type: qwen3_5` and `qwen3_5_moe`."""

    projections = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")

    def head(self, hidden: mx.array) -> mx.array:
        """As `Target.head`; a sharded head has a part of the vocabulary on every rank."""
        part, group = super().head(hidden), self.language_model.sharding_group
        return part if group is None else gather_last_axis(part, group)

    @property
    def language_model(self) -> Any:
        """The text part."""
        return self.model.language_model

    def projected(self, net: Any, rows: list[mx.array]) -> Projected:
        """What `projections` returned, as the recurrence takes it."""
        qkv, z, b, a = rows
        return Projected(qkv, z.reshape(*z.shape[:2], net.num_v_heads, net.head_v_dim), b, a)
