"""A target, converted as mlx-lm does it.

The model is mlx-lm's, its weights not read yet; quantising and casting them only adds to what is
still to be computed. What mlx-lm then does at once is left to `shards`: writing tensor by tensor.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint import read_config
from ..errors import CheckpointError, UnsupportedError, UsageError
from ..loading import UNREADABLE, cast_floating, check_target_files
from ..shards import SHARD_BYTES
from ..targets import family_of
from .plan import Plan, Source, shard, tokenizer_files
from .recipe import TargetRecipe, no_layer_fits

GROUP_SIZE = 64  # of mlx-lm's mixtures


def plan_target(source: Source, recipe: TargetRecipe, limit: int = SHARD_BYTES) -> Plan:
    """Read a target's headers and say how it will be written.

    Args:
        source: a folder with safetensors.
        limit: most bytes of a file.

    Raises:
        CheckpointError: files that are damaged, or not of the model that the config states.
        UnsupportedError: a family that we do not run, or weights that mlx-lm does not read.
        UsageError: bits for a target that has few already.
    """
    lm, config = build_target(source, recipe)
    arrays = dict(cast(list[tuple[str, mx.array]], tree_flatten(lm.parameters())))
    return Plan(
        part="target",
        source=source,
        config=_saved(config, lm),
        shards=shard(arrays, limit),
        files=tokenizer_files(source.path),
        recipe=recipe.as_dict(),
        facts=_facts(recipe, config),
    )


def build_target(source: Source, recipe: TargetRecipe) -> tuple[Any, dict[str, Any]]:
    """mlx-lm's model, its weights stored by `recipe` but not computed yet, and its config."""
    raw = read_config(source.path)
    family_of(raw.get("model_type"), source.name)
    if recipe.quantises and raw.get("quantization"):
        raise UsageError(f"{source.name} is quantised already; leave out bits, mode and recipe")
    check_target_files(source.path, raw)
    lm, config = _load(source.path)
    _cast_as_stated(lm, config, recipe)
    if recipe.quantises:
        config = _quantise(lm, config, recipe)
    return lm, config


def _cast_as_stated(lm: Any, config: dict[str, Any], recipe: TargetRecipe) -> None:
    """To the recipe's dtype, else to the one that the config states."""
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else {}
    stated = recipe.dtype or config.get("torch_dtype") or text.get("dtype")
    kinds = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
    if stated in kinds:
        cast_floating(lm, kinds[stated])


def _load(folder: Path) -> tuple[Any, dict[str, Any]]:
    from mlx_lm.utils import load_model

    try:
        with redirect_stdout(StringIO()):
            return cast(tuple[Any, dict[str, Any]], load_model(folder, lazy=True))
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(f"{folder} cannot be loaded by mlx-lm: {reason}") from error


def _quantise(lm: nn.Module, config: dict[str, Any], recipe: TargetRecipe) -> dict[str, Any]:
    from mlx_lm.convert import mixed_quant_predicate_builder
    from mlx_lm.utils import quantize_model

    predicate = None
    try:
        if recipe.recipe:
            size = recipe.group_size or GROUP_SIZE
            predicate = mixed_quant_predicate_builder(recipe.recipe, lm, size)
        with redirect_stdout(StringIO()):
            _, config = quantize_model(
                lm,
                config,
                recipe.group_size,
                recipe.bits,
                mode=recipe.mode,
                quant_predicate=predicate,
            )
    except ValueError as error:
        raise UnsupportedError(f"mlx-lm cannot quantise this target so: {error}") from error
    if not any("scales" in module for module in lm.modules()):
        raise no_layer_fits(recipe.group_size or config["quantization"]["group_size"])
    return config


def _saved(config: dict[str, Any], lm: Any) -> dict[str, Any]:
    """config.json as mlx-lm writes it; `model_file` never got here, `auto_map` is not kept."""
    drop = {"_name_or_path", "auto_map"}
    if "vision_tower" not in lm.get("model", {}):
        drop.add("vision_config")
    config = {name: value for name, value in config.items() if name not in drop}
    if "quantization" in config:
        config["quantization_config"] = config["quantization"]
    return dict(sorted(config.items()))


def _facts(recipe: TargetRecipe, config: dict[str, Any]) -> tuple[str, ...]:
    if not recipe.quantises:
        return ("not quantised",)
    stored = config["quantization"]
    if recipe.recipe:
        return (f"mlx-lm's mixture {recipe.recipe}",)
    return (f"{stored['bits']} bits in groups of {stored['group_size']}, mode {recipe.mode}",)
