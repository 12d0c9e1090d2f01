"""Targets and drafts on disk, small and random, in the layouts that are found in the wild."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from dflash_mlx.config import DraftConfig
from dflash_mlx.convert.recipe import DraftRecipe, TargetRecipe
from dflash_mlx.convert.run import Request, prepare
from dflash_mlx.drafts import draft_for
from dflash_mlx.gguf import architectures
from dflash_mlx.gguf.draft import CONVOLUTIONS, TOP

from . import reduced
from .reduced import COMMON, VOCAB
from .tiny import VOCAB as TALKING
from .tiny import tokenizer

# Rows of the reduced families are no whole groups of anything; these are.
HIDDEN, MIDDLE = 64, 96
DRAFT: dict[str, Any] = {
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 16,
    "num_target_layers": 4,
    "dflash_config": {"mask_token_id": 63, "target_layer_ids": [0, 2], "block_size": 4},
}
SECOND = DRAFT | {
    "architectures": ["DFlash2DraftModel"],
    "is_causal": False,
    "layer_types": ["sliding_attention"] * 2,
    "dflash_config": DRAFT["dflash_config"]
    | {"conv_group_size": 16, "conv_kernel_size": 2, "selector_rank": 32, "selector_top_k": 4},
}


def draft_tensors(raw: Mapping[str, Any], seed: int = 5) -> dict[str, mx.array]:
    """Random tensors under their published names, norms that matter included."""
    mx.random.seed(seed)
    network = draft_for(DraftConfig.from_dict(raw, "config"))
    tensors = {}
    for name, like in tree_flatten(network.parameters()):
        noise = mx.random.normal(like.shape)
        scale = 0.2 if like.ndim == 1 else like.shape[-1] ** -0.5
        bare = name.removesuffix(".weight") if name.endswith("_codebook.weight") else name
        tensors[bare] = (1 if name.endswith("norm.weight") else 0) + scale * noise
    return tensors


def write_draft(folder: Path, raw: Mapping[str, Any] = DRAFT, dtype: Any = mx.float32) -> Path:
    """A draft as z-lab publishes it."""
    tensors = {name: a.astype(dtype) for name, a in draft_tensors(raw).items()}
    return write(folder, raw, tensors)


def write(folder: Path, raw: Mapping[str, Any], tensors: dict[str, mx.array]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})
    return folder


def write_speculators(folder: Path, **changes: Any) -> Path:
    """The same draft as vllm-project/speculators saves it: taps + 1, the target's own beside."""
    inner = DRAFT["dflash_config"]
    apart = ("dflash_config", "architectures", "num_target_layers", "rope_theta")
    layers = {name: value for name, value in DRAFT.items() if name not in apart}
    layers["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    raw = {
        "architectures": ["DFlashSpeculator"],
        "speculators_model_type": "dflash",
        "speculators_version": "0.5.0",
        "transformer_layer_config": layers,
        "aux_hidden_state_layer_ids": [tap + 1 for tap in inner["target_layer_ids"]],
        "block_size": inner["block_size"],
        "mask_token_id": inner["mask_token_id"],
        "draft_vocab_size": VOCAB,
        "sample_from_anchor": False,
        "sliding_window_non_causal": False,
        "speculators_config": {"algorithm": "dflash"},
        "target_hidden_size": None,
        "tie_word_embeddings": False,
    }
    own = {name: mx.zeros((VOCAB, HIDDEN)) for name in ("embed_tokens.weight", "lm_head.weight")}
    return write(folder, raw | changes, draft_tensors(DRAFT) | own)


def write_muse(folder: Path) -> Path:
    """A draft as Meta saves its assistant for Muse Glimmer; its layers all slide, never causal."""
    inner = DRAFT["dflash_config"]
    raw = {name: value for name, value in DRAFT.items() if name != "dflash_config"} | inner
    raw |= {"architectures": ["MuseGlimmerAssistantModel"], "model_type": "muse_glimmer_assistant"}
    raw |= {"layer_types": ["sliding_attention"] * 2}
    del raw["vocab_size"], raw["num_target_layers"]  # as published
    names = {"fc.weight": "encoder.fc.weight"}
    names |= {"hidden_norm.weight": "encoder.output_norm_enc.weight"}
    tensors = {names.get(n, n): tensor for n, tensor in draft_tensors(DRAFT).items()}
    return write(folder, raw, tensors)


def write_gguf_draft(path: Path, raw: Mapping[str, Any] = DRAFT, **changes: Any) -> Path:
    """A draft as llama.cpp's converter saves it: its own names, taps + 1, norms in float32."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "dflash")
    inner = raw["dflash_config"]
    counts = {
        "block_count": raw["num_hidden_layers"],
        "embedding_length": raw["hidden_size"],
        "feed_forward_length": raw["intermediate_size"],
        "context_length": raw["max_position_embeddings"],
        "attention.head_count": raw["num_attention_heads"],
        "attention.head_count_kv": raw["num_key_value_heads"],
        "attention.key_length": raw["head_dim"],
        "attention.sliding_window": raw["sliding_window"],
        "block_size": inner["block_size"],
        **{n: inner[n] for n in inner if n.startswith(("conv_", "selector_"))},
        **changes,
    }
    for name, value in counts.items():
        writer.add_uint32(f"dflash.{name}", value)
    writer.add_float32("dflash.rope.freq_base", raw["rope_theta"])
    writer.add_float32("dflash.attention.layer_norm_rms_epsilon", raw["rms_norm_eps"])
    writer.add_array("dflash.target_layers", [tap + 1 for tap in inner["target_layer_ids"]])
    slides = [kind == "sliding_attention" for kind in raw["layer_types"]]
    writer.add_array("dflash.attention.sliding_window_pattern", slides)
    writer.add_uint32("tokenizer.ggml.mask_token_id", inner["mask_token_id"])
    if "is_causal" in raw:
        writer.add_bool("dflash.attention.causal", raw["is_causal"])
    for name, tensor in draft_tensors(raw).items():
        writer.add_tensor(_gguf_name(name), np.array(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    tops = {ours: theirs for theirs, ours in TOP.items()}
    if name in tops:
        return tops[name]
    _, index, part = name.split(".", 2)
    convolutions = {ours: theirs for theirs, ours in CONVOLUTIONS.items()}
    if part in convolutions:
        return f"blk.{index}.{convolutions[part]}"
    stem, _, kind = part.rpartition(".")
    names = architectures.LAYER | architectures.HEAD_NORMS
    return f"blk.{index}.{ {ours: theirs for theirs, ours in names.items()}[stem] }.{kind}"


def family_config(family: str) -> dict[str, Any]:
    """Of a reduced family, in widths that can be quantised."""
    return _wider(reduced.CONFIGS[family])


def _wider(config: dict[str, Any]) -> dict[str, Any]:
    wide = {"hidden_size": HIDDEN, "intermediate_size": MIDDLE}
    return {
        name: _wider(value) if name == "text_config" else wide.get(name, value)
        for name, value in config.items()
    }


@cache
def family_model(family: str) -> Any:
    """The model of `family_config`, the same in every call."""
    config = family_config(family)
    model = reduced.make(config, reduced.MODULES.get(family, config["model_type"]))
    mx.eval(model.parameters())
    return model


def write_target(folder: Path, family: str = "llama-tied") -> Path:
    """A small model of a family, as a checkpoint has it."""
    write(folder, family_config(family), dict(tree_flatten(family_model(family).parameters())))
    tokenizer()._tokenizer.save_pretrained(folder)
    return folder


def write_talking_target(folder: Path) -> Path:
    """A model with as many tokens as its tokenizer, so that it can be asked something."""
    raw = _wider(COMMON | {"model_type": "llama", "vocab_size": TALKING})
    write(folder, raw, dict(tree_flatten(reduced.make(raw, "llama").parameters())))
    tokenizer()._tokenizer.save_pretrained(folder)
    return folder


def convert(model: Path | str, out: Path, draft: Path | str | None = None, **more: Any) -> Path:
    """Convert, and return the folder that was made."""
    recipes = {
        "target": TargetRecipe(**more.pop("target", {})),
        "drafter": DraftRecipe(**more.pop("drafter", {})),
    }
    request = Request(str(model), out, str(draft) if draft else None, **recipes, **more)
    prepare(request, quiet=True).write(lambda *_: None)
    return out
