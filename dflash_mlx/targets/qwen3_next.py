"""Qwen3-Next and Qwen3-Coder-Next."""

from typing import Any

import mlx.core as mx

from .delta_round import Projected
from .gated_delta import GatedDeltaTarget


class Qwen3NextTarget(GatedDeltaTarget):
    """`model_type: qwen3_next`."""

    projections = ("in_proj_qkvz", "in_proj_ba")

    def projected(self, net: Any, rows: list[mx.array]) -> Projected:
        """What `projections` returned, as the recurrence takes it."""
        q, k, v, z, b, a = net.fix_query_key_value_ordering(*rows)
        qkv = mx.concatenate([part.flatten(2) for part in (q, k, v)], axis=-1)
        return Projected(qkv, z, b, a)
