"""Qwen3-Next and Qwen3-Coder-Next."""

from .gated_delta import GatedDeltaTarget


class Qwen3NextTarget(GatedDeltaTarget):
    """`model_type: qwen3_next`."""

    projections = ("in_proj_qkvz", "in_proj_ba")
