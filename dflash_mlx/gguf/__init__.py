"""From a GGUF to a folder with config.json, safetensors and a tokenizer.

Targets become what mlx-lm loads, drafts what z-lab publishes. One tensor is unpacked at a time.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from .. import shards
from ..checkpoint import INDEX, check_names
from ..errors import CheckpointError, UnsupportedError, UsageError
from ..paths import whole_folder
from .architectures import (
    ARCHITECTURES,
    ROPE_FREQS,
    TOP,
    expected_shapes,
    llama3_scaling,
    target_config,
    undo_permute,
)
from .blocks import read_tensor
from .draft import DFLASH, draft_config, draft_name
from .header import LAYOUTS, Header, open_gguf, read_header
from .tokenizer import tokenizer_files

__all__ = ["convert_gguf", "is_draft", "read_header"]


def is_draft(path: Path) -> bool:
    """Whether a GGUF holds a draft; raises CheckpointError for what is no whole GGUF."""
    return read_header(path).architecture == DFLASH


def convert_gguf(
    source: Path,
    folder: Path,
    *,
    dtype: mx.Dtype | None = mx.float16,
    target: Mapping[str, Any] | None = None,
) -> None:
    """Write the model, tokenizer and chat template of a GGUF into a new `folder`.

    Tensors are unpacked in float32 and all stored as `dtype`; None takes float32, bfloat16 or
    float16, as the largest of them was stored or scaled. Nothing half-written stays after an
    error.

    Args:
        target: for a draft, the config of its target.

    Raises:
        UsageError: `folder` exists, or a package is missing.
        CheckpointError: `source` is no whole GGUF, or the disk is full.
        UnsupportedError: anything but a plain llama, qwen2, qwen3 or DFlash draft.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists; remove it or name another folder")
    with open_gguf(source) as (gguf, data):
        kind = dtype or _dtype(gguf)
        model = _draft(gguf, target) if gguf.architecture == DFLASH else _target(gguf, data)
        tensors = {
            model.names[name]: shards.Tensor(
                tensor.shape, kind, partial(_read, gguf, data, model, name, kind)
            )
            for name, tensor in gguf.tensors.items()
            if name in model.names
        }
        _check(gguf, model, tensors)
        _save(folder, model.files, tensors)


class _Model(NamedTuple):
    """What a GGUF holds: files beside the weights, new names, tensors whose rows are put back."""

    files: dict[str, Any]
    names: dict[str, str]
    expected: dict[str, tuple[int, ...]] | None
    heads: dict[str, int]


def _target(gguf: Header, data: mmap) -> _Model:
    name = gguf.architecture
    if name not in ARCHITECTURES:
        known = ", ".join(map(repr, (*ARCHITECTURES, DFLASH)))
        raise UnsupportedError(f"{gguf.path}: architecture {name!r}; supported: {known}")
    config = target_config(gguf)
    if freqs := gguf.tensors.get(ROPE_FREQS):
        stored = read_tensor(data, freqs, mx.float32)
        config["rope_scaling"] = llama3_scaling(gguf, config, stored)
    names = {n: _target_name(gguf, n) for n in gguf.tensors if n != ROPE_FREQS}
    heads = {}
    if ARCHITECTURES[name].permuted:
        counts = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
        parts = {f".self_attn.{part}_proj.": count for part, count in counts.items()}
        heads = {new: n for new in names.values() for part, n in parts.items() if part in new}
    files = {"config.json": config, **tokenizer_files(gguf)}
    return _Model(files, names, expected_shapes(name, config), heads)


def _draft(gguf: Header, target: Mapping[str, Any] | None) -> _Model:
    names = {name: draft_name(gguf, name) for name in gguf.tensors}
    return _Model({"config.json": draft_config(gguf, target)}, names, None, {})


def _target_name(gguf: Header, name: str) -> str:
    architecture = ARCHITECTURES[gguf.architecture]
    stem, _, kind = name.rpartition(".")
    block, _, rest = stem.partition(".")
    index, _, part = rest.partition(".")
    if kind == "weight" and stem in TOP:
        return f"{TOP[stem]}.weight"
    kinds = ("weight", "bias") if architecture.biases else ("weight",)
    if block == "blk" and index.isdecimal() and part in architecture.layer and kind in kinds:
        return f"model.layers.{index}.{architecture.layer[part]}.{kind}"
    raise UnsupportedError(f"{gguf.path}: tensor {name} is not part of a plain {gguf.architecture}")


def _read(gguf: Header, data: mmap, model: _Model, name: str, dtype: mx.Dtype) -> mx.array:
    array = read_tensor(data, gguf.tensors[name], dtype)
    heads = model.heads.get(model.names[name])
    return undo_permute(array, heads) if heads else array


def _dtype(gguf: Header) -> mx.Dtype:
    largest = max(gguf.tensors.values(), key=lambda tensor: tensor.nbytes)
    plain = {"F32": mx.float32, "BF16": mx.bfloat16}
    # A draft never runs in float16.
    other = mx.bfloat16 if gguf.architecture == DFLASH else mx.float16
    return plain.get(LAYOUTS[largest.kind].name, other)


def _check(gguf: Header, model: _Model, tensors: Mapping[str, shards.Tensor]) -> None:
    if len(tensors) != len(model.names):
        raise CheckpointError(f"{gguf.path}: two tensors have the same name")
    if model.expected is not None:
        check_names(tensors, model.expected, str(gguf.path))


def _save(folder: Path, files: dict[str, Any], tensors: dict[str, shards.Tensor]) -> None:
    parts = shards.split(tensors, shards.SHARD_BYTES)
    tensors.clear()
    if (index := shards.index(parts)) is not None:
        files = {INDEX: index.decode(), **files}
    try:
        with whole_folder(folder) as unfinished:
            for file, shard in parts.items():
                shards.write(unfinished / file, shard, lambda _: None)
            for name, content in files.items():
                text = content if isinstance(content, str) else json.dumps(content, indent=1)
                (unfinished / name).write_text(text, encoding="utf-8")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CheckpointError(
            f"{folder}: not written, {'the disk is full' if full else error.strerror}"
        ) from error
