"""Drafts whose layers are stored in few bits, as MLX writes them, or become so while loading."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import dequantize_model

from ..errors import CheckpointError, UnsupportedError
from ..fields import Fields

GROUP_SIZE = 64
MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")
# Parts of DFlash 2 that stay as they are: a few percent of a draft, and kernels and scores that
# are made of products of what is stored, so that its errors meet.
KEPT = ("attention_conv", "mlp_conv", "candidate_selector")


def is_quantised(raw: Mapping[str, Any], source: str) -> bool:
    """Whether config.json says that the tensors are MLX-quantised.

    Raises UnsupportedError for the formats of other programs.
    """
    stored = raw.get("quantization") or raw.get("quantization_config")
    if not stored:
        return False
    if not isinstance(stored, dict) or "quant_method" in stored:
        raise UnsupportedError(
            f"{source}: quantization is {stored!r}; drafts quantised by MLX are supported, or "
            "use the draft as it was published"
        )
    return True


def without_bits(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that says nothing of few bits any more."""
    return {k: v for k, v in raw.items() if k not in ("quantization", "quantization_config")}


def quantise_as_stored(
    network: nn.Module, raw: Mapping[str, Any], names: Collection[str], source: str
) -> None:
    """Give `network` the kinds of layers that its file has tensors for.

    Layers with scales in the file are quantised, by the settings under their own name in
    config.json's `quantization` or else by the common ones, as mlx-lm does it.

    Args:
        raw: the parsed config.json, of which `is_quantised` holds.
        names: the file's tensors.
        source: where they are from, for the error text.

    Raises:
        CheckpointError: the settings are malformed or do not fit a layer.
    """
    stored = raw.get("quantization") or raw["quantization_config"]
    own = {k.removeprefix("model."): v for k, v in stored.items() if isinstance(v, dict)}
    common = _settings(stored, source)
    settings = {path: _settings(value, source) for path, value in own.items()}

    def kind(path: str, _: nn.Module) -> bool | dict[str, Any]:
        return settings.get(path, common) if f"{path}.scales" in names else False

    try:
        nn.quantize(network, class_predicate=kind)
    except ValueError as error:
        raise CheckpointError(f"{source}: quantization does not fit: {error}") from error


def quantise(network: nn.Module, bits: int) -> None:
    """Quantise linear layers to `bits`, but no part of DFlash 2's own."""

    def chosen(path: str, module: nn.Module) -> bool:
        if not isinstance(module, nn.Linear) or module.weight.shape[-1] % GROUP_SIZE:
            return False
        return not set(KEPT) & set(path.split("."))

    nn.quantize(network, group_size=GROUP_SIZE, bits=bits, class_predicate=chosen)


def dequantise(network: nn.Module, dtype: mx.Dtype) -> None:
    """Make plain layers of the quantised ones, to compute in `dtype`."""
    dequantize_model(network).set_dtype(dtype)


def _settings(stored: Mapping[str, Any], source: str) -> dict[str, Any]:
    fields = Fields(stored, f"{source}: quantization")
    mode = fields.get("mode", str, "affine")
    if mode not in MODES:
        raise UnsupportedError(f"{source}: quantization mode {mode!r}; MLX has {', '.join(MODES)}")
    return {
        "group_size": fields.positive("group_size"),
        "bits": fields.positive("bits"),
        "mode": mode,
    }
