"""What a draft starts from: a new network over a target, or one that exists.

A new one is a small copy of the target's end: its last layers, with the same weights where the
shapes agree, behind an `fc` that lets the last tap through. It then begins as something that reads
the target's hidden states about as the target does, which is worth many steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from ..config import DFLASH_1, DFLASH_2, FULL, SLIDING, DraftConfig
from ..drafts import draft_for
from ..drafts.dflash import DFlashDraft
from ..drafts.dflash2 import ConvolvedLayer, DFlash2Draft
from ..errors import UsageError
from ..fields import Fields
from ..loading import read_draft
from ..targets.base import Target, dense
from .arrays import flat
from .packing import Document
from .settings import DraftSettings

TAPS = 5
# What the published DFlash 2 drafts have.
DFLASH_2_FIELDS = {
    "conv_kernel_size": 2,
    "conv_group_size": 16,
    "selector_rank": 256,
    "selector_top_k": 16,
}
COPIED = ("rope_theta", "final_logit_softcapping", "output_multiplier")


def new_config(
    target: Mapping[str, Any], settings: DraftSettings, mask_token: int, name: str
) -> dict[str, Any]:
    """The config.json of a new draft, in the layout of the published ones.

    Args:
        target: the target's parsed config.json.
        mask_token: an id that no text contains.
        name: the target's.

    Raises:
        CheckpointError: the target's config lacks a field.
        UsageError: settings do not fit the target.
    """
    nested = target.get("text_config")
    text = Fields(nested if isinstance(nested, dict) else target, f"{name}/config.json")
    layers, size = text.positive("num_hidden_layers"), text.positive("hidden_size")
    heads = text.positive("num_attention_heads")
    window = settings.window
    rope = text.get("rope_parameters", dict, {})
    raw: dict[str, Any] = {
        "architectures": [DFLASH_2 if settings.dflash2 else DFLASH_1],
        "model_type": "qwen3",
        "hidden_size": size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": text.get("num_key_value_heads", int, heads),
        "head_dim": text.get("head_dim", int, size // heads),
        "intermediate_size": settings.intermediate_size
        or text.get("intermediate_size", int, 3 * size),
        "vocab_size": text.get("vocab_size", int, target.get("vocab_size")),
        "rms_norm_eps": text.get("rms_norm_eps", float, 1e-6),
        "rope_theta": rope.get("rope_theta", 10000.0),
        "rope_scaling": None,
        "max_position_embeddings": text.get("max_position_embeddings", int, 8192),
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "is_causal": False,
        "layer_types": [FULL if window is None else SLIDING] * settings.layers,
        "sliding_window": window,
        "block_size": settings.block_size,
        "num_target_layers": layers,
        "dflash_config": {
            "target_layer_ids": list(_taps(settings.taps, layers)),
            "mask_token_id": mask_token,
            "block_size": settings.block_size,
        },
        "target_model": name,
    }
    if settings.vocabulary is not None:
        raw["draft_vocab_size"] = settings.vocabulary
    raw |= {field: text.raw[field] for field in COPIED if text.raw.get(field) is not None}
    if settings.dflash2:
        raw["dflash_config"] |= DFLASH_2_FIELDS | {"selector_rank": settings.selector_rank}
        if not settings.convolutions:
            raw["dflash_config"] |= {"conv_kernel_size": 0}
    return raw


def spread_taps(layers: int, count: int) -> tuple[int, ...]:
    """The published rule: from layer 1 to the third last, evenly."""
    if count == 1:
        return (layers // 2,)
    first, last = 1, max(1, layers - 3)
    places = (round(first + i * (last - first) / (count - 1)) for i in range(count))
    return tuple(sorted(set(places)))


def _taps(wanted: tuple[int, ...], layers: int) -> tuple[int, ...]:
    if not wanted:
        return spread_taps(layers, TAPS)
    if min(wanted) < 0 or max(wanted) >= layers or sorted(set(wanted)) != list(wanted):
        raise UsageError(
            f"taps are {list(wanted)}, expected ascending layers from 0 to {layers - 1}"
        )
    return wanted


def free_token(documents: Sequence[Document], special: Sequence[int], known: int, rows: int) -> int:
    """A token for masks: one that has a row in the target's embedding and stands in no text.

    Args:
        documents: the texts.
        special: the tokenizer's special tokens.
        known: ids that the tokenizer knows.
        rows: of the embedding; those behind the known ones are the best choice.

    Raises:
        UsageError: every token occurs.
    """
    if rows > known:
        return known
    used: NDArray[np.bool_] = np.zeros(rows, np.bool_)
    for document in documents:
        used[document.ids] = True
    for token in [*reversed(special), *range(rows - 1, -1, -1)]:
        if not used[token]:
            return int(token)
    raise UsageError("every token of the vocabulary occurs in the texts; name one for masks")


def frequent_tokens(documents: Sequence[Document], size: int, count: int) -> mx.array:
    """The tokens that the answers have most of, int32 [count], ascending.

    Args:
        documents: the texts.
        size: how many tokens there are; ids behind them are padding of the head.
        count: how many to take; of equally frequent ones those of lower ids.
    """
    counts = np.zeros(size, np.int64)
    for document in documents:
        answer = document.ids[document.answer :]
        np.add.at(counts, answer[answer < size], 1)
    most = np.argsort(-counts, kind="stable")[:count]
    return mx.array(np.sort(most).astype(np.int32))


def existing(folder: Path, config: DraftConfig, vocabulary: int | None) -> DFlashDraft:
    """A draft that exists, to be trained further; its parameters become float32."""
    draft = draft_for(config, vocabulary)
    read = read_draft(folder, config, dtype="float32", vocabulary=vocabulary, dense=True)
    draft.load_weights(list(flat(read.parameters()).items()))
    mx.eval(draft.parameters())
    return draft


def initialise(draft: DFlashDraft, target: Target, scale: mx.array, seed: int) -> None:
    """Fill a new network from the last layers of its target.

    Args:
        draft: not prepared yet.
        target: with the draft's taps.
        scale: size of the features per dimension [taps * hidden_size].
        seed: of what stays random.
    """
    config = draft.config
    _randomise(draft, seed)
    copied = target.layers[-config.num_layers :]
    for own, source in zip(draft.layers, copied, strict=False):
        _copy_layer(own, source)
    draft.norm.weight = target.backbone.norm.weight.astype(mx.float32)
    size = config.hidden_size
    draft.fc.weight = mx.zeros_like(draft.fc.weight)
    draft.fc.weight[:, -size:] = mx.eye(size)
    # The context's rows take the place of what a layer of the target gets behind its own norm.
    last, norm = scale[-size:], _matrices(copied[0]).get("input_layernorm.weight")
    if norm is not None:
        draft.hidden_norm.weight = norm * last / mx.sqrt(mx.mean(last * last))
    _neutral(draft)
    mx.eval(draft.parameters())


def _randomise(draft: DFlashDraft, seed: int) -> None:
    key = mx.random.key(seed)
    for _, module in draft.named_modules():
        if isinstance(module, nn.Linear):
            key, now = mx.random.split(key)
            spread = 1 / math.sqrt(module.weight.shape[1])
            module.weight = mx.random.normal(module.weight.shape, scale=spread, key=now)


def random_start(draft: DFlashDraft, seed: int) -> None:
    """Fill a new network with random weights alone."""
    _randomise(draft, seed)
    _neutral(draft)
    mx.eval(draft.parameters())


def _neutral(draft: DFlashDraft) -> None:
    """DFlash 2's parts start as if they were not there."""
    if not isinstance(draft, DFlash2Draft):
        return
    for layer in draft.layers:
        if not isinstance(layer, ConvolvedLayer):
            continue
        for conv in (layer.attention_conv, layer.mlp_conv):
            conv.base_kernel = mx.zeros_like(conv.base_kernel)
            conv.base_kernel[:, 0] = 1
            conv.kernel_projection.weight = mx.zeros_like(conv.kernel_projection.weight)
    selector = draft.candidate_selector
    selector.predecessor_codebook.weight = 0.02 * mx.random.normal(
        selector.predecessor_codebook.weight.shape, key=mx.random.key(0)
    )
    selector.successor_codebook.weight = mx.zeros_like(selector.successor_codebook.weight)


def _copy_layer(own: nn.Module, source: nn.Module) -> None:
    """Weights of the same name and shape; norms of heads that the target has none of."""
    found = _matrices(source)
    for path, module in own.named_modules():
        weight = found.get(f"{path}.weight")
        if "weight" in module and weight is not None and weight.shape == module.weight.shape:
            module.weight = weight
    attention = own.self_attn
    for name in ("q", "k"):
        projection = found.get(f"self_attn.{name}_proj.weight")
        before = found.get("input_layernorm.weight")
        if f"self_attn.{name}_norm.weight" in found or projection is None or before is None:
            continue
        # A norm takes away how long queries and keys are; this gives their usual length back.
        length = mx.sqrt(mx.mean(((projection * before) ** 2).sum(axis=1)))
        norm = attention[f"{name}_norm"]
        norm.weight = mx.full(norm.weight.shape, length.item())


def _matrices(layer: nn.Module) -> dict[str, mx.array]:
    """The weights of a layer by name, dense, float32."""
    return {
        f"{path}.weight": dense(module).astype(mx.float32)
        for path, module in layer.named_modules()
        if "weight" in module
    }
