"""From a network in training to a draft that decodes, in memory and as a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint import WEIGHTS
from ..drafts import draft_for
from ..drafts.dflash import DFlashDraft
from ..paths import whole_folder
from .arrays import write_arrays
from .lora import merged

TYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}


def finished(draft: DFlashDraft, scale: mx.array, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Parameters for features as the target makes them, in the type they are stored in."""
    parameters = merged(draft)
    parameters["fc.weight"] = parameters["fc.weight"] / scale
    return {
        name: value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value
        for name, value in parameters.items()
    }


def prepared(
    draft: DFlashDraft, scale: mx.array, stored: mx.Dtype, dtype: mx.Dtype, vocabulary: int | None
) -> DFlashDraft:
    """A network of its own that decodes as the exported one will.

    Args:
        draft: in training.
        scale: of its features.
        stored: the type of the export.
        dtype: what it computes in.
        vocabulary: see `draft_for`.
    """
    network = draft_for(draft.config, vocabulary)
    network.load_weights(list(finished(draft, scale, stored).items()))
    network.set_dtype(dtype)
    return network.prepare()


def export(
    draft: DFlashDraft, scale: mx.array, stored: str, raw: Mapping[str, Any], folder: Path
) -> None:
    """Write config.json and model.safetensors, in the place of what was there.

    Args:
        draft: in training.
        scale: of its features.
        stored: "float32" or "bfloat16".
        raw: its config.json.
    """
    tensors = finished(draft, scale, TYPES[stored])
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with whole_folder(folder) as new:
        # Codebooks are stored bare.
        names = {name: name.replace("_codebook.weight", "_codebook") for name in tensors}
        stored_tensors = {names[name]: tensor for name, tensor in tensors.items()}
        write_arrays(new / WEIGHTS, stored_tensors)
        text = json.dumps({**raw, "torch_dtype": stored}, indent=2)
        (new / "config.json").write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)
