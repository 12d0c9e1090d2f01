"""The rotary embedding that a draft's config.json asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import UnsupportedError
from .fields import Fields


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the draft: half-split pairs over the whole head.

    The published PyTorch implementation, which takes it from transformers, is the definition.

    Attributes:
        kind: "default", "yarn" (arXiv 2309.00071, section 3) or "llama3" (Llama 3.1).
        theta: the base of the frequencies.
        factor: slow frequencies are divided by it; what "slow" is follows from the fields below
            and `original_max_position`, in positions.
        beta_fast, beta_slow: rotations within the original length that bound YaRN's blend.
        attention_factor: YaRN multiplies the rotated queries and keys by it, so attention scores
            by its square. A config's own `attention_factor` decides; else the ratio of `mscale`
            to `mscale_all_dim` where it states both; else 0.1 ln(factor) + 1. Kimi-K2.5 and 2.6
            state both as 1 with a factor of 64, which gives 1.0 here, as in the published PyTorch
            and MLX code. Serving engines long ignored the two fields, used 1.416, and report that
            fewer tokens are accepted with 1.0; which one was trained with is not published. To
            try it, put "attention_factor": 1.4159 into the config's rope_scaling.
        truncate: whether YaRN's blend begins and ends at whole pairs.
        low_freq_factor, high_freq_factor: Llama 3.1's bounds, as fractions of the original length.
    """

    kind: str
    theta: float
    factor: float = 1.0
    original_max_position: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


def read_rope(top: Fields) -> Rope:
    """Read the rotary embedding from a config's top level.

    Theta may stand there or in `rope_parameters` or `rope_scaling`; where it stands twice, the
    top level decides, as in the published MLX code.

    Raises:
        CheckpointError: a field is missing or has the wrong type or range.
        UnsupportedError: a kind of embedding that is not implemented.
    """
    scaling = top.get("rope_parameters", dict, None) or top.get("rope_scaling", dict, None) or {}
    nested = Fields(scaling, f"{top.source}: rope")
    theta = top.get("rope_theta", float, None) or nested.get("rope_theta", float, 10000.0)
    kind = nested.get("rope_type", str, None) or nested.get("type", str, "default")
    _check_whole(top)
    _check_whole(nested)
    if any(isinstance(value, dict) for value in scaling.values()):
        raise UnsupportedError(f"{nested.source} differs by layer type; one for all is supported")
    if kind == "default":
        return Rope("default", theta)
    if kind == "yarn":
        return _yarn(nested, theta)
    if kind == "llama3":
        return Rope(
            "llama3",
            theta,
            factor=nested.number("factor"),
            original_max_position=nested.positive("original_max_position_embeddings"),
            low_freq_factor=nested.number("low_freq_factor"),
            high_freq_factor=nested.number("high_freq_factor"),
        )
    raise UnsupportedError(
        f"{top.source}: rope type {kind!r}; default, yarn and llama3 are supported"
    )


def _check_whole(fields: Fields) -> None:
    """Refuse what rotates a part of each head; `mrope_section` makes no difference for text."""
    part = fields.get("partial_rotary_factor", float, 1.0)
    if part != 1.0:
        raise UnsupportedError(
            f"{fields.source}: partial_rotary_factor is {part}; only drafts that rotate whole "
            "heads (1.0) are supported"
        )


def _yarn(nested: Fields, theta: float) -> Rope:
    factor = nested.number("factor")
    return Rope(
        "yarn",
        theta,
        factor,
        nested.positive("original_max_position_embeddings"),
        nested.get("beta_fast", float, 32.0),
        nested.get("beta_slow", float, 1.0),
        _attention_factor(nested, factor),
        nested.get("truncate", bool, True),
    )


def _attention_factor(nested: Fields, factor: float) -> float:
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
