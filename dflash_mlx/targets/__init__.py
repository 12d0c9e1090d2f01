"""Targets by `model_type`. Adding a family: one file here, one line in `TARGETS`.

The type is config.json's, or that of the model mlx-lm made of it. The two differ where a config
nests its text part, so such a family stands under both names; names that mlx-lm maps to another
module (`minimax_m2`, `gemma4_unified`, `mistral`) stand here themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pkgutil import iter_modules
from typing import Any

from ..errors import UnsupportedError
from ..ranks import ALONE, Ranks
from .base import Target

TARGETS = {
    "deepseek_v3": "mla:MlaTarget",
    "deepseek_v32": "glm_moe_dsa:GlmMoeDsaTarget",
    "gemma4": "gemma4:Gemma4Target",
    "gemma4_text": "gemma4:Gemma4Target",
    "gemma4_unified": "gemma4:Gemma4Target",
    "glm4": "base:Target",
    "glm4_moe": "base:Target",
    "glm4_moe_lite": "mla:MlaTarget",
    "glm_moe_dsa": "glm_moe_dsa:GlmMoeDsaTarget",
    "gpt_oss": "gpt_oss:GptOssTarget",
    "kimi_k2": "mla:MlaTarget",
    "kimi_k25": "kimi_k25:KimiK25Target",
    "llama": "llama:LlamaTarget",
    "minimax_m2": "base:Target",
    "mistral": "llama:LlamaTarget",
    "muse_glimmer": "muse_glimmer:MuseGlimmerTarget",
    "muse_glimmer_text": "muse_glimmer:MuseGlimmerTarget",
    "qwen2": "base:Target",
    "qwen3": "base:Target",
    "qwen3_5": "qwen3_5:Qwen35Target",
    "qwen3_5_moe": "qwen3_5:Qwen35Target",
    "qwen3_moe": "base:Target",
    "qwen3_next": "qwen3_next:Qwen3NextTarget",
}


def target_for(model: Any, taps: Sequence[int] = (), ranks: Ranks = ALONE) -> Target:
    """Wrap a model that `mlx_lm.load` returned, or this rank's part of it.

    Raises:
        UnsupportedError: the family is not known here.
        PairError: a tap lies outside the model.
    """
    module, name = family_of(model.model_type, "the target").split(":")
    target: Target = getattr(import_module(f".{module}", __name__), name)(model, taps, ranks=ranks)
    return target


def family_of(kind: object, name: str) -> str:
    """The entry in `TARGETS` of a `model_type`.

    Args:
        kind: the type as a config or a model states it.
        name: whose type it is, for the error text.

    Raises:
        UnsupportedError: the family is not known here.
    """
    kind = str(kind)
    if kind in TARGETS:
        return TARGETS[kind]
    if _mlx_lm_has(kind):
        needed = (
            "has it, but it needs a file in dflash_mlx/targets that runs its layers and says how "
            "they roll back (CONTRIBUTING.md, 'A target family')"
        )
    else:
        needed = "has no such model either and would need one first"
    raise UnsupportedError(
        f"{name} is of type {kind!r}, which is not supported: mlx-lm {version('mlx-lm')} "
        f"{needed}; supported are {', '.join(TARGETS)}"
    )


def _mlx_lm_has(kind: str) -> bool:
    from mlx_lm import models  # here: it takes a second
    from mlx_lm.utils import MODEL_REMAPPING

    return MODEL_REMAPPING.get(kind, kind) in {m.name for m in iter_modules(models.__path__)}
