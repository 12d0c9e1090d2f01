"""The draft's config.json as one frozen value, every field checked once.

Published checkpoints spell the same facts in several ways (block size and rope moved between
revisions); all the spellings end here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .errors import CheckpointError, UnsupportedError, UsageError
from .fields import Fields
from .implemented import check_implemented
from .rope import Rope, read_rope
from .span import Span

FULL = "full_attention"
SLIDING = "sliding_attention"
DFLASH_1 = "DFlashDraftModel"
DFLASH_2 = "DFlash2DraftModel"
CANDIDATES = 32  # of each place of a block, where somebody chooses among several


@dataclass(frozen=True)
class DFlash2:
    """What DFlash 2 adds: convolutions around sublayers and a selector of candidates.

    Attributes:
        conv_kernel_size: rows a convolution reaches, its own included; 0 where there are no
            convolutions, only the selector.
        conv_group_size: channels that share what a convolution takes from the input.
        selector_rank: width of the selector's codebooks.
        selector_top_k: candidates per position.
    """

    conv_kernel_size: int
    conv_group_size: int
    selector_rank: int
    selector_top_k: int


@dataclass(frozen=True)
class DraftConfig:
    """What a DFlash draft is: shapes, taps, block, and how it attends.

    Attributes:
        taps: zero-based ids of the target layers whose output is captured.
        layer_types: "full_attention" or "sliding_attention" per layer.
        causal: per layer, whether a row of the block sees only the rows before it.
        sliding_window: a row sees keys less than this many positions back.
        output_multiplier, final_logit_softcapping: applied in this order to the logits of the
            target's plain head.
        input_embedding_scale: multiplies the embeddings as the target makes them, its own scale
            included (Gemma's), as in the published MLX code; the PyTorch code multiplies the
            bare table.
        draft_vocab_size: how many tokens it can propose; None for all. Which ones is a tensor of
            the checkpoint, `draft_vocabulary`.
        dflash2: None for a DFlash 1 draft.
        span: what full layers keep of their context; None for all of it. No checkpoint says so.
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
    draft_vocab_size: int | None = None
    dflash2: DFlash2 | None = None
    span: Span | None = None

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Per layer: the sliding window in positions, None where attention is full."""
        return tuple(self.sliding_window if t == SLIDING else None for t in self.layer_types)

    @property
    def spans(self) -> tuple[int | Span | None, ...]:
        """As `windows`, with `span` in place of full attention."""
        return tuple(self.span if w is None else w for w in self.windows)

    def with_span(self, span: Span) -> DraftConfig:
        """The config of a draft that keeps a bounded context.

        Raises:
            UsageError: it does so already.
        """
        if FULL not in self.layer_types:
            raise UsageError(
                f"every layer of the draft slides already, over {self.sliding_window} positions; "
                "leave out --draft-window"
            )
        return replace(self, span=span)

    def on_scaled_embeddings(self, scale: float) -> DraftConfig:
        """The config for a target whose embeddings come multiplied by `scale` already.

        A config that states just this factor means the bare table, as the PyTorch code has it.
        """
        if scale == 1 or not math.isclose(self.input_embedding_scale, scale, rel_tol=0.01):
            return self
        return replace(self, input_embedding_scale=1.0)

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
        architecture = _architecture(raw, source)
        top = Fields(raw, source)
        inner = Fields(top.get("dflash_config", dict, {}), f"{source}: dflash_config")
        check_implemented(top, inner)
        num_layers = top.positive("num_hidden_layers", 1024)
        layer_types = _layer_types(top, num_layers)
        block_size = _place(inner, top, "block_size").get("block_size", int, 16)
        if not 2 <= block_size <= 64:
            raise CheckpointError(f"{source}: block_size is {block_size}, expected 2 to 64")
        num_heads = top.positive("num_attention_heads")
        return cls(
            hidden_size=top.positive("hidden_size", 2**20),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=_kv_heads(top, num_heads),
            head_dim=top.positive("head_dim"),
            intermediate_size=top.positive("intermediate_size"),
            vocab_size=top.positive("vocab_size"),
            rms_norm_eps=top.number("rms_norm_eps"),
            max_position_embeddings=top.positive("max_position_embeddings", 2**31 - 1),
            attention_bias=top.get("attention_bias", bool, False),
            block_size=block_size,
            taps=_taps(inner),
            mask_token_id=_place(inner, top, "mask_token_id").need("mask_token_id", int),
            rope=read_rope(top),
            layer_types=layer_types,
            causal=_causal(top, inner, layer_types),
            sliding_window=_window(top, layer_types),
            num_target_layers=top.get("num_target_layers", int, None),
            final_logit_softcapping=_either(inner, top, "final_logit_softcapping", None),
            output_multiplier=_either(inner, top, "output_multiplier", 1.0),
            input_embedding_scale=_either(inner, top, "input_embedding_scale", 1.0),
            draft_vocab_size=_draft_vocab_size(top),
            dflash2=_dflash2(top, inner) if architecture == DFLASH_2 else None,
        )


def _architecture(raw: Mapping[str, Any], source: str) -> str:
    names = raw.get("architectures") or [DFLASH_1]
    if "dflash_config" not in raw:
        raise UnsupportedError(
            f"{source} is no DFlash draft: it has no dflash_config (architectures: {names})"
        )
    for name in (DFLASH_2, DFLASH_1):
        if name in names:
            return name
    raise UnsupportedError(
        f"{source}: architectures is {names}; {DFLASH_1} and {DFLASH_2} are supported"
    )


def _dflash2(top: Fields, inner: Fields) -> DFlash2:
    found = _place(inner, top, "conv_kernel_size")
    alone = found.get("conv_kernel_size", int, None) == 0
    known = {"conv_kernel_size": 0, "conv_group_size": 1} if alone else {}
    names = [name for name in DFlash2.__annotations__ if name not in known]
    values = known | {name: _place(inner, top, name).positive(name) for name in names}
    group, size = values["conv_group_size"], top.positive("hidden_size")
    if size % group:
        raise inner.wrong("conv_group_size", group, f"a divisor of hidden_size {size}")
    return DFlash2(**values)


def _draft_vocab_size(top: Fields) -> int | None:
    size: int | None = top.get("draft_vocab_size", int, None)
    every = top.positive("vocab_size")
    if size is None or size == every:
        return None
    if not CANDIDATES <= size < every:
        raise top.wrong("draft_vocab_size", size, f"{CANDIDATES} to vocab_size {every}")
    return size


def _kv_heads(top: Fields, num_heads: int) -> int:
    kv_heads = top.positive("num_key_value_heads")
    if num_heads % kv_heads:
        raise top.wrong("num_key_value_heads", kv_heads, f"a divisor of {num_heads} heads")
    return kv_heads


def _taps(inner: Fields) -> tuple[int, ...]:
    taps = inner.need("target_layer_ids", list)
    if not taps or not all(isinstance(i, int) and not isinstance(i, bool) for i in taps):
        raise inner.wrong("target_layer_ids", taps, "a list of layer numbers")
    if min(taps) < 0 or sorted(set(taps)) != taps:
        raise inner.wrong("target_layer_ids", taps, "ascending layer numbers from 0")
    return tuple(taps)


def _layer_types(top: Fields, num_layers: int) -> tuple[str, ...]:
    types = top.get("layer_types", list, None) or [FULL] * num_layers
    if len(types) != num_layers:
        raise top.wrong("layer_types", types, f"{num_layers} entries, one a layer")
    unknown = sorted({str(t) for t in types} - {FULL, SLIDING})
    if unknown:
        raise UnsupportedError(f"{top.source}: unknown layer types {unknown}")
    return tuple(types)


def _window(top: Fields, layer_types: tuple[str, ...]) -> int | None:
    # Kept only where a layer slides: many configs state a window that no layer uses.
    return top.positive("sliding_window") if SLIDING in layer_types else None


def _causal(top: Fields, inner: Fields, layer_types: tuple[str, ...]) -> tuple[bool, ...]:
    """Reference rule: what the config says for all layers, else sliding layers are causal."""
    stated = top.get("is_causal", bool, None)
    if stated is None:
        stated = inner.get("causal", bool, None)
    return tuple(t == SLIDING if stated is None else stated for t in layer_types)


def _place(inner: Fields, top: Fields, name: str) -> Fields:
    """Where a field of dflash_config stands: there, or at the top as in some exports."""
    return inner if inner.raw.get(name) is not None or top.raw.get(name) is None else top


def _either(inner: Fields, top: Fields, name: str, default: float | None) -> Any:
    return _place(inner, top, name).get(name, float, default)
