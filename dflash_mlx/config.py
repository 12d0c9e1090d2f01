"""The draft's config.json as one frozen value, every field checked once.

Published checkpoints spell the same facts in several ways (block size and rope moved between
revisions); all the spellings end here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import CheckpointError, UnsupportedError

FULL = "full_attention"
SLIDING = "sliding_attention"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the draft: half-split pairs over the whole head.

    `factor` and what follows describe YaRN (arXiv 2309.00071, section 3); `kind` is "default"
    where they do not apply. `attention_factor` multiplies the rotated queries and keys; the
    default follows the reference implementation: the ratio of `mscale` to `mscale_all_dim` where
    a config states both, else 0.1 ln(factor) + 1.
    """

    kind: str
    theta: float
    factor: float = 1.0
    original_max_position: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0


@dataclass(frozen=True)
class DraftConfig:
    """What a DFlash draft is: shapes, taps, block, and how it attends.

    Attributes:
        taps: zero-based ids of the target layers whose output is captured.
        layer_types: "full_attention" or "sliding_attention" per layer.
        causal: per layer, whether a row of the block sees only the rows before it.
        sliding_window: a row sees keys less than this many positions back.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    attention_bias: bool
    block_size: int
    taps: tuple[int, ...]
    mask_token_id: int
    rope: Rope
    layer_types: tuple[str, ...]
    causal: tuple[bool, ...]
    sliding_window: int | None
    num_target_layers: int | None
    final_logit_softcapping: float | None
    output_multiplier: float
    input_embedding_scale: float

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Per layer: the sliding window in positions, None where attention is full."""
        return tuple(self.sliding_window if t == SLIDING else None for t in self.layer_types)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str) -> DraftConfig:
        """Check a parsed config.json.

        Args:
            raw: the parsed file.
            source: where it came from, for the error text.

        Raises:
            CheckpointError: a field is missing or has the wrong type or range.
            UnsupportedError: a kind of draft that we do not run.
        """
        _check_architecture(raw, source)
        top = _Fields(raw, source)
        inner = _Fields(top.get("dflash_config", dict, {}), f"{source}: dflash_config")
        num_layers = top.positive("num_hidden_layers")
        layer_types = _layer_types(top, num_layers)
        block_size = inner.get("block_size", int, None) or top.get("block_size", int, 16)
        if not 2 <= block_size <= 64:
            raise CheckpointError(f"{source}: block_size is {block_size}, expected 2 to 64")
        mask = inner.get("mask_token_id", int, None)
        num_heads = top.positive("num_attention_heads")
        return cls(
            hidden_size=top.positive("hidden_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=_kv_heads(top, num_heads),
            head_dim=top.positive("head_dim"),
            intermediate_size=top.positive("intermediate_size"),
            vocab_size=top.positive("vocab_size"),
            rms_norm_eps=top.number("rms_norm_eps"),
            max_position_embeddings=top.positive("max_position_embeddings"),
            attention_bias=top.get("attention_bias", bool, False),
            block_size=block_size,
            taps=_taps(inner),
            mask_token_id=top.need("mask_token_id", int) if mask is None else mask,
            rope=_rope(top),
            layer_types=layer_types,
            causal=_causal(top, inner, layer_types),
            sliding_window=_window(top, layer_types),
            num_target_layers=top.get("num_target_layers", int, None),
            final_logit_softcapping=_either(inner, top, "final_logit_softcapping", None),
            output_multiplier=_either(inner, top, "output_multiplier", 1.0),
            input_embedding_scale=_either(inner, top, "input_embedding_scale", 1.0),
        )


class _Fields:
    """Typed look-ups in a JSON object, with the file's name in every complaint."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw = raw
        self.source = source

    def get(self, name: str, kind: type[_T], default: Any) -> Any:
        value = self.raw.get(name)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(name, value, f"a {kind.__name__}")
        return value

    def need(self, name: str, kind: type[_T]) -> Any:
        if self.raw.get(name) is None:
            raise CheckpointError(f"{self.source}: the field {name!r} is missing")
        return self.get(name, kind, None)

    def positive(self, name: str) -> int:
        value: int = self.need(name, int)
        if value < 1:
            raise self.wrong(name, value, "a positive int")
        return value

    def number(self, name: str) -> float:
        value: float = self.need(name, float)
        if value <= 0:
            raise self.wrong(name, value, "a positive number")
        return value

    def wrong(self, name: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {name} is {value!r}, expected {expected}")


def _check_architecture(raw: Mapping[str, Any], source: str) -> None:
    names = raw.get("architectures") or []
    if "DFlash2DraftModel" in names:
        raise UnsupportedError(f"{source}: DFlash 2 drafts are not supported yet; use a DFlash 1")
    if "dflash_config" not in raw:
        raise UnsupportedError(
            f"{source} is no DFlash draft: it has no dflash_config (architectures: {names})"
        )


def _kv_heads(top: _Fields, num_heads: int) -> int:
    kv_heads = top.positive("num_key_value_heads")
    if num_heads % kv_heads:
        raise top.wrong("num_key_value_heads", kv_heads, f"a divisor of {num_heads} heads")
    return kv_heads


def _taps(inner: _Fields) -> tuple[int, ...]:
    taps = inner.need("target_layer_ids", list)
    if not taps or not all(isinstance(i, int) and not isinstance(i, bool) for i in taps):
        raise inner.wrong("target_layer_ids", taps, "a list of layer numbers")
    if min(taps) < 0 or sorted(set(taps)) != taps:
        raise inner.wrong("target_layer_ids", taps, "ascending layer numbers from 0")
    return tuple(taps)


def _layer_types(top: _Fields, num_layers: int) -> tuple[str, ...]:
    types = top.get("layer_types", list, None) or [FULL] * num_layers
    if len(types) != num_layers:
        raise top.wrong("layer_types", types, f"{num_layers} entries, one a layer")
    unknown = sorted({str(t) for t in types} - {FULL, SLIDING})
    if unknown:
        raise UnsupportedError(f"{top.source}: unknown layer types {unknown}")
    return tuple(types)


def _window(top: _Fields, layer_types: tuple[str, ...]) -> int | None:
    # Kept only where a layer slides: many configs state a window that no layer uses.
    return top.positive("sliding_window") if SLIDING in layer_types else None


def _causal(top: _Fields, inner: _Fields, layer_types: tuple[str, ...]) -> tuple[bool, ...]:
    """Reference rule: what the config says for all layers, else sliding layers are causal."""
    stated = top.get("is_causal", bool, None)
    if stated is None:
        stated = inner.get("causal", bool, None)
    return tuple(t == SLIDING if stated is None else stated for t in layer_types)


def _either(inner: _Fields, top: _Fields, name: str, default: float | None) -> Any:
    value = inner.get(name, float, None)
    return top.get(name, float, default) if value is None else value


def _rope(top: _Fields) -> Rope:
    scaling = top.get("rope_parameters", dict, None) or top.get("rope_scaling", dict, None) or {}
    nested = _Fields(scaling, f"{top.source}: rope")
    theta = top.get("rope_theta", float, None) or nested.get("rope_theta", float, 10000.0)
    kind = nested.get("rope_type", str, None) or nested.get("type", str, "default")
    if kind == "default":
        return Rope("default", theta)
    if kind != "yarn":
        raise UnsupportedError(f"{top.source}: rope type {kind!r}; default and yarn are supported")
    factor = nested.number("factor")
    return Rope(
        "yarn",
        theta,
        factor,
        nested.get("original_max_position_embeddings", int, 4096),
        nested.get("beta_fast", float, 32.0),
        nested.get("beta_slow", float, 1.0),
        _attention_factor(nested, factor),
    )


def _attention_factor(nested: _Fields, factor: float) -> float:
    stated = nested.get("attention_factor", float, None)
    if stated is not None:
        return float(stated)
    mscale = nested.get("mscale", float, None)
    all_dim = nested.get("mscale_all_dim", float, None)

    def amplitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if mscale and all_dim:
        return amplitude(mscale) / amplitude(all_dim)
    return amplitude(1.0)
