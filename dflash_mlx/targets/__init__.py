"""Targets by mlx-lm's `model_type`. Adding a family: one file here, one line in `TARGETS`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ..errors import UnsupportedError
from .base import Target

TARGETS = {
    "llama": "llama:LlamaTarget",
    "qwen3": "base:Target",
    "qwen3_moe": "base:Target",
}


def target_for(model: Any, taps: Sequence[int] = ()) -> Target:
    """Wrap a model that `mlx_lm.load` returned.

    Raises:
        UnsupportedError: the family is not known here.
        PairError: a tap lies outside the model.
    """
    kind = str(model.model_type)
    if kind not in TARGETS:
        raise UnsupportedError(
            f"targets of type {kind!r} are not supported; supported are {', '.join(TARGETS)} "
            "(CONTRIBUTING.md says what adding one takes)"
        )
    module, name = TARGETS[kind].split(":")
    target: Target = getattr(import_module(f".{module}", __name__), name)(model, taps)
    return target
