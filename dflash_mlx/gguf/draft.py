"""Drafts in llama.cpp's GGUFs: architecture `dflash`, DFlash 1 and 2.

Taps are stored as numbers of the layers whose *input* they are, one more than z-lab's. Nothing
is permuted. What the file does not say, the target's config does: how many layers it has and how
many rows its head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import DFLASH_1, DFLASH_2, FULL, SLIDING
from ..errors import CheckpointError, UnsupportedError
from .architectures import HEAD_NORMS, LAYER
from .header import Header

DFLASH = "dflash"
TOP = {
    "fc.weight": "fc.weight",
    "enc.output_norm.weight": "hidden_norm.weight",
    "output_norm.weight": "norm.weight",
    "selector_hidden.weight": "candidate_selector.hidden_projection.weight",
    "selector_predecessor.weight": "candidate_selector.predecessor_codebook",
    "selector_successor.weight": "candidate_selector.successor_codebook",
}
CONVOLUTIONS = {
    "attn_conv_base": "attention_conv.base_kernel",
    "attn_conv_proj.weight": "attention_conv.kernel_projection.weight",
    "ffn_conv_base": "mlp_conv.base_kernel",
    "ffn_conv_proj.weight": "mlp_conv.kernel_projection.weight",
}
_SECOND = ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")
# What other kinds of drafts under this architecture have, which would run as something else.
_OTHERS = ("markov_rank", "confidence_head", "expert_count", "attention.kv_lora_rank")


def draft_config(gguf: Header, target: Mapping[str, Any] | None) -> dict[str, Any]:
    """config.json in z-lab's layout.

    Raises:
        CheckpointError: the metadata lacks a field, or neither it nor `target` states the
            vocabulary.
        UnsupportedError: another kind of draft.
    """
    for name in _OTHERS:
        if gguf.meta.get(f"{DFLASH}.{name}"):
            raise UnsupportedError(f"{gguf.path}: {DFLASH}.{name} is set; no plain DFlash draft")
    heads, hidden = _count(gguf, "attention.head_count"), _count(gguf, "embedding_length")
    kinds = _kinds(gguf)
    second = f"{DFLASH}.selector_rank" in gguf.meta
    inner = {
        "target_layer_ids": _taps(gguf),
        "mask_token_id": gguf.need("tokenizer.ggml.mask_token_id", int),
        "block_size": _count(gguf, "block_size"),
        **_scalings(gguf),
        **({name: _count(gguf, name) for name in _SECOND} if second else {}),
    }
    config = {
        "architectures": [DFLASH_2 if second else DFLASH_1],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": len(kinds),
        "num_attention_heads": heads,
        "num_key_value_heads": _count(gguf, "attention.head_count_kv", heads),
        "head_dim": _count(gguf, "attention.key_length", hidden // heads),
        "intermediate_size": _count(gguf, "feed_forward_length"),
        "rms_norm_eps": gguf.number(f"{DFLASH}.attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": _count(gguf, "context_length"),
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "layer_types": kinds,
        **_rope(gguf),
        "vocab_size": _vocabulary(gguf, target),
        "dflash_config": inner,
    }
    if SLIDING in kinds:
        config["sliding_window"] = _count(gguf, "attention.sliding_window")
    if f"{DFLASH}.attention.causal" in gguf.meta:
        config["is_causal"] = gguf.need(f"{DFLASH}.attention.causal", bool)
    layers = _text(target).get("num_hidden_layers")
    return config | ({"num_target_layers": layers} if layers else {})


def draft_name(gguf: Header, name: str) -> str:
    """z-lab's name of a tensor; raises UnsupportedError for one that no DFlash draft has."""
    if name in TOP:
        return TOP[name]
    block, _, rest = name.partition(".")
    index, _, part = rest.partition(".")
    stem, _, kind = part.rpartition(".")
    if block == "blk" and index.isdecimal():
        if part in CONVOLUTIONS:
            return f"layers.{index}.{CONVOLUTIONS[part]}"
        if stem in (names := LAYER | HEAD_NORMS) and kind in ("weight", "bias"):
            return f"layers.{index}.{names[stem]}.{kind}"
    raise UnsupportedError(f"{gguf.path}: tensor {name} is not part of a DFlash draft")


def _count(gguf: Header, name: str, default: int | None = None) -> int:
    return gguf.count(f"{DFLASH}.{name}", default)


def _taps(gguf: Header) -> list[int]:
    layers = gguf.need(f"{DFLASH}.target_layers", list)
    if not layers or not all(type(i) is int and i >= 1 for i in layers):
        raise CheckpointError(f"{gguf.path}: {DFLASH}.target_layers is {layers}, expected 1 and up")
    return [layer - 1 for layer in layers]


def _kinds(gguf: Header) -> list[str]:
    count = _count(gguf, "block_count")
    slides = gguf.meta.get(f"{DFLASH}.attention.sliding_window_pattern", [False] * count)
    if not isinstance(slides, list) or len(slides) != count:
        raise CheckpointError(f"{gguf.path}: sliding_window_pattern has not {count} entries")
    return [SLIDING if slide else FULL for slide in slides]


def _scalings(gguf: Header) -> dict[str, float]:
    names = {"final_logit_softcapping": "final_logit_softcapping"}
    names["output_multiplier"] = "logit_scale"
    found = {ours: f"{DFLASH}.{theirs}" for ours, theirs in names.items()}
    return {ours: gguf.number(key) for ours, key in found.items() if key in gguf.meta}


def _rope(gguf: Header) -> dict[str, Any]:
    theta = gguf.number(f"{DFLASH}.rope.freq_base", 10000.0)
    kind = gguf.need(f"{DFLASH}.rope.scaling.type", str, "none")
    if kind == "none":
        return {"rope_theta": theta}
    if kind != "yarn" or "rope_freqs.weight" in gguf.tensors:
        raise UnsupportedError(f"{gguf.path}: RoPE of type {kind!r}; supported: plain and yarn")
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": gguf.number(f"{DFLASH}.rope.scaling.factor"),
        "original_max_position_embeddings": _count(gguf, "rope.scaling.original_context_length"),
    }
    betas = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
    for name, stored in betas.items():
        if f"{DFLASH}.rope.scaling.{stored}" in gguf.meta:
            scaling[name] = gguf.number(f"{DFLASH}.rope.scaling.{stored}")
    return {"rope_theta": theta, "rope_scaling": scaling}


def _vocabulary(gguf: Header, target: Mapping[str, Any] | None) -> int:
    text = _text(target)
    stated = text.get("vocab_size") or gguf.meta.get(f"{DFLASH}.vocab_size")
    if stated:
        return int(stated)
    books = gguf.tensors.get("selector_successor.weight")
    if books:
        return books.shape[0]
    tokens = gguf.meta.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and tokens:
        return len(tokens)
    raise CheckpointError(
        f"{gguf.path} does not say how many tokens its target has; name the target, too"
    )


def _text(target: Mapping[str, Any] | None) -> Mapping[str, Any]:
    nested = target.get("text_config") if target else None
    return nested if isinstance(nested, Mapping) else target or {}
