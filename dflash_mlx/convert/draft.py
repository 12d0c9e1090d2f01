"""A draft, from any layout to z-lab's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint import check_names, read_config, read_tensors
from ..config import DraftConfig
from ..drafts import draft_for
from ..drafts.dflash import DFlashDraft
from ..drafts.quantised import dequantise, is_quantised, quantise_as_stored, without_bits
from ..shards import SHARD_BYTES
from .dialects import normalise, rename
from .plan import Plan, Source, shard
from .recipe import GROUPS, DraftRecipe, no_layer_fits

_NAMES = {mx.float32: "float32", mx.bfloat16: "bfloat16"}


def plan_draft(
    source: Source,
    recipe: DraftRecipe,
    target: Mapping[str, Any] | None = None,
    limit: int = SHARD_BYTES,
) -> Plan:
    """Read a draft and say how it will be written.

    Args:
        source: a folder with safetensors.
        recipe: how it is stored.
        target: the config of its target, for what some layouts leave out.
        limit: most bytes of a file.

    Raises:
        CheckpointError: files that are damaged, or not those of the draft that the config states.
        UnsupportedError: a draft that we do not run.
        UsageError: bits that fit no layer.
    """
    built = build_draft(source, recipe, target)
    arrays = {published_name(name): array for name, array in _parameters(built.network)}
    return Plan(
        part="draft",
        source=source,
        config=_config(built, recipe),
        shards=shard(arrays, limit),
        recipe=recipe.as_dict(),
        facts=_facts(built, recipe),
    )


class Built(NamedTuple):
    """A draft whose weights are not computed yet.

    Attributes:
        raw: its config in z-lab's layout.
        layout: the one it came in.
        bits: of every layer that was quantised here.
    """

    network: DFlashDraft
    raw: dict[str, Any]
    layout: str
    bits: dict[str, int]


def build_draft(
    source: Source,
    recipe: DraftRecipe,
    target: Mapping[str, Any] | None = None,
    *,
    embed_scale: float = 1.0,
    vocabulary: int | None = None,
) -> Built:
    """Read a draft and store its weights by `recipe`; see `plan_draft` for what it raises.

    Args:
        embed_scale: what the target multiplies its embeddings by.
        vocabulary: how many ids the tokenizer knows.
    """
    raw, tensors, layout = _read(source, target)
    config = DraftConfig.from_dict(raw, f"{source.name}/config.json")
    network = draft_for(config.on_scaled_embeddings(embed_scale), vocabulary)
    stored = is_quantised(raw, source.name)
    if stored:
        quantise_as_stored(network, raw, tensors.keys(), source.name)
    check_names(tensors, {n: a.shape for n, a in _parameters(network)}, source.name)
    network.load_weights(list(tensors.items()))
    network.set_dtype(_dtype(recipe, tensors))
    if stored and recipe.quantises:
        dequantise(network, network.dtype)
        raw = without_bits(raw)
    return Built(network, raw, layout, quantise(network, recipe))


def quantise(network: nn.Module, recipe: DraftRecipe) -> dict[str, int]:
    """Quantise the layers that `recipe` names; the bits of every layer that got some.

    A layer whose rows are no whole groups stays as it is. Raises UsageError if all of them do.
    """
    chosen: dict[str, int] = {}

    def choose(path: str, module: nn.Module) -> bool | dict[str, Any]:
        bits = recipe.layer(path) if isinstance(module, nn.Linear) else None
        if bits is None or module.weight.shape[-1] % recipe.group_size:
            return False
        chosen[path] = bits
        return {"group_size": recipe.group_size, "bits": bits, "mode": "affine"}

    nn.quantize(network, class_predicate=choose)
    if recipe.quantises and not chosen:
        raise no_layer_fits(recipe.group_size)
    return chosen


def published_name(name: str) -> str:
    """The published name of a tensor of ours: the selector's codebooks are stored bare."""
    return name.removesuffix(".weight") if name.endswith("_codebook.weight") else name


def _read(
    source: Source, target: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, mx.array], str]:
    """Config and tensors in z-lab's layout, and the name of the layout they came in."""
    found, stored = read_config(source.path), read_tensors(source.path)
    raw, layout = normalise(found, source.name)
    tensors = rename(stored, found, source.name)
    raw = _completed(raw, target)
    return raw, {_ours(name): tensor for name, tensor in tensors.items()}, layout


def _ours(name: str) -> str:
    return f"{name}.weight" if name.endswith("_codebook") else name


def _completed(raw: dict[str, Any], target: Mapping[str, Any] | None) -> dict[str, Any]:
    """With what the target knows: published readers need its number of layers."""
    nested = target.get("text_config") if target else None
    text = nested if isinstance(nested, Mapping) else target or {}
    known = {
        "num_target_layers": text.get("num_hidden_layers"),
        "vocab_size": text.get("vocab_size"),
    }
    return {**{k: v for k, v in known.items() if v is not None and raw.get(k) is None}, **raw}


def _dtype(recipe: DraftRecipe, tensors: Mapping[str, mx.array]) -> mx.Dtype:
    """What is asked for, else the norm's own; float16 becomes bfloat16."""
    if recipe.dtype:
        return mx.float32 if recipe.dtype == "float32" else mx.bfloat16
    return mx.float32 if tensors["norm.weight"].dtype == mx.float32 else mx.bfloat16


def _config(built: Built, recipe: DraftRecipe) -> dict[str, Any]:
    dropped = ("torch_dtype", "auto_map")
    config = {name: value for name, value in built.raw.items() if name not in dropped}
    config["dtype"] = _NAMES[built.network.dtype]
    if own := built.bits:
        common = {"group_size": recipe.group_size, "mode": "affine"}
        usual = max(own.values(), key=list(own.values()).count)
        apart = {path: {**common, "bits": bits} for path, bits in own.items() if bits != usual}
        config["quantization"] = {**common, "bits": usual, **apart}
        config["quantization_config"] = config["quantization"]  # mlx-lm writes it twice
    return config


def _facts(built: Built, recipe: DraftRecipe) -> tuple[str, ...]:
    facts = [f"read from {built.layout} layout"] if built.layout != "z-lab" else []
    dtype = built.network.dtype
    for group in GROUPS:
        bits = recipe.bits(group)
        how = f"{bits} bits in groups of {recipe.group_size}" if bits else _NAMES[dtype]
        facts.append(f"{group}: {how}")
    return (*facts, f"norms and the rest: {_NAMES[dtype]}")


def _parameters(module: nn.Module) -> list[tuple[str, mx.array]]:
    return cast(list[tuple[str, mx.array]], tree_flatten(module.parameters()))
