"""The layouts that drafts are published in, turned into one: z-lab's.

Trainers and engines write the same network under other names. What each means was read from its
own code: speculators (vllm-project/speculators, `models/dflash`), Meta's assistant for Muse
Glimmer (transformers' `muse_glimmer_assistant`), `midlayer` (vLLM). Files of llama.cpp are in
`gguf_draft.py`. A config is only ever rewritten, never completed by guessing: what `DraftConfig`
then misses, it names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..config import DFLASH_1
from ..errors import CheckpointError, UnsupportedError

# What speculators copies from the target into a draft's file. Ours takes them from the target.
_TARGETS_OWN = (
    *("embed_tokens.weight", "lm_head.weight", "verifier_norm.weight"),
    *("verifier_lm_head.weight", "t2d", "d2t"),
)
_MUSE = {"encoder.fc.weight": "fc.weight", "encoder.output_norm_enc.weight": "hidden_norm.weight"}
_INSIDE = ("target_layer_ids", "mask_token_id", "block_size")


@dataclass(frozen=True)
class Dialect:
    """One layout.

    Attributes:
        matches: whether a parsed config.json is of it.
        config: its config in z-lab's layout; the name of the file is for errors.
        tensor: z-lab's name of a tensor; None for one that is the target's own.
    """

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    config: Callable[[Mapping[str, Any], str], dict[str, Any]]
    tensor: Callable[[str], str | None]


def dialect_of(raw: Mapping[str, Any]) -> Dialect:
    """The layout of a draft's config.json."""
    return next(dialect for dialect in DIALECTS if dialect.matches(raw))


def normalise(raw: Mapping[str, Any], source: str) -> tuple[dict[str, Any], str]:
    """A draft's config in z-lab's layout, and the name of the layout it came in.

    Raises:
        CheckpointError: a field that this layout needs is missing or malformed.
        UnsupportedError: the draft is of a kind that does not exist in z-lab's layout.
    """
    dialect = dialect_of(raw)
    return dialect.config(raw, source), dialect.name


def rename(
    tensors: Mapping[str, mx.array], raw: Mapping[str, Any], source: str
) -> dict[str, mx.array]:
    """The draft's tensors under z-lab's names.

    Raises:
        CheckpointError: two tensors have the same name there.
    """
    dialect = dialect_of(raw)
    renamed: dict[str, mx.array] = {}
    for old, tensor in tensors.items():
        new = dialect.tensor(old)
        if new in renamed:
            raise CheckpointError(f"{source}: {old} and another tensor are both {new}")
        if new is not None:
            renamed[new] = tensor
    return renamed


def _plain(name: str) -> str:
    name = name.removeprefix("model.")
    return f"layers.0.{name.removeprefix('midlayer.')}" if name.startswith("midlayer.") else name


def _as_published(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """z-lab's own; some exports have at the top what its readers seek inside."""
    inner = raw.get("dflash_config")
    if not isinstance(inner, Mapping):
        return dict(raw)
    moved = {k: raw[k] for k in ("mask_token_id",) if inner.get(k) is None and raw.get(k)}
    return {**raw, "dflash_config": {**inner, **moved}}


def _speculators_tensor(name: str) -> str | None:
    name = _plain(name)
    return None if name in _TARGETS_OWN else name


def _speculators_config(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Layers are in a config of their own; taps count the embedding as layer 0.

    Only sliding layers are causal in a block, and `sliding_window_non_causal` says that not even
    they are: the same as z-lab's `is_causal`, false.
    """
    kind = raw.get("speculators_model_type")
    if kind != "dflash":
        raise UnsupportedError(
            f"{source}: a speculators draft of type {kind!r}; of these only 'dflash' can be run"
        )
    layers = raw.get("transformer_layer_config")
    if not isinstance(layers, Mapping):
        raise CheckpointError(f"{source}: transformer_layer_config is missing or no object")
    if raw.get("sample_from_anchor"):
        raise UnsupportedError(
            f"{source}: sample_from_anchor is set: this draft predicts at the anchor, too"
        )
    _check_vocabulary(raw, source)
    inner = {name: raw.get(name) for name in ("mask_token_id", "block_size")}
    inner["target_layer_ids"] = _one_less(raw.get("aux_hidden_state_layer_ids"), source)
    config = {k: v for k, v in layers.items() if not k.startswith("_")}
    config = _flat_rope(config) | {"architectures": [DFLASH_1], "dflash_config": inner}
    if raw.get("sliding_window_non_causal"):
        config["is_causal"] = False
    stored = raw.get("dtype") or raw.get("torch_dtype")
    return config | ({"dtype": stored} if stored else {})


def _flat_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Where a rope is stated per kind of layer, speculators runs all by that of sliding ones."""
    rope = config.get("rope_parameters")
    if isinstance(rope, Mapping) and isinstance(rope.get("sliding_attention"), Mapping):
        return config | {"rope_parameters": dict(rope["sliding_attention"])}
    return config


def _check_vocabulary(raw: Mapping[str, Any], source: str) -> None:
    layers = raw.get("transformer_layer_config")
    full = layers.get("vocab_size") if isinstance(layers, Mapping) else None
    reduced = raw.get("draft_vocab_size")
    if reduced is not None and reduced != full:
        raise UnsupportedError(
            f"{source}: the draft has a vocabulary of its own, {reduced} of {full} tokens; only "
            "drafts that use the target's head are supported"
        )


def _one_less(layers: object, source: str) -> list[int]:
    """Taps from numbers that count the embedding as layer 0."""
    if not isinstance(layers, list) or not layers or not all(type(i) is int for i in layers):
        raise CheckpointError(f"{source}: aux_hidden_state_layer_ids is {layers!r}, no numbers")
    if min(layers) < 1:
        raise UnsupportedError(
            f"{source}: aux_hidden_state_layer_ids {layers} taps the embedding; only the outputs "
            "of layers, 1 and up, can be tapped"
        )
    return [layer - 1 for layer in layers]


def _muse_tensor(name: str) -> str | None:
    return _MUSE.get(name) or _plain(name)


def _muse_config(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Meta's assistant has at the top what z-lab has in `dflash_config`, and is never causal.

    Its candidates come from the target's plain head: no multiplier, no cap, neither of which
    changes the most probable token.
    """
    missing = [name for name in _INSIDE if name not in raw]
    if missing:
        raise CheckpointError(f"{source}: missing fields: {', '.join(missing)}")
    config = {name: value for name, value in raw.items() if name not in _INSIDE}
    return config | {
        "architectures": [DFLASH_1],
        "model_type": "qwen3",
        "is_causal": False,
        "dflash_config": {name: raw[name] for name in _INSIDE},
    }


DIALECTS = (
    Dialect(
        "speculators",
        lambda raw: "speculators_model_type" in raw,
        _speculators_config,
        _speculators_tensor,
    ),
    Dialect(
        "Meta's assistant",
        lambda raw: (
            raw.get("model_type") == "muse_glimmer_assistant"
            or "MuseGlimmerAssistantModel" in (raw.get("architectures") or ())
        ),
        _muse_config,
        _muse_tensor,
    ),
    Dialect("z-lab", lambda raw: True, _as_published, _plain),
)
