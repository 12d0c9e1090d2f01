"""What a loaded pair takes in memory: weights as they are, the rest by its configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .config import DraftConfig
from .drafts.dflash import DFlashDraft
from .footprint import DraftShape, Kept, heads, query_heads, target_shape
from .machine import Machine
from .memory import Memory
from .ranks import Ranks
from .targets.base import Target

MIB = 2**20
FUSED = (64, 80, 128)  # head sizes for which MLX's attention on a Mac holds no scores


def memory_of(
    target: Target, draft: DFlashDraft | None, raw: Mapping[str, Any], machine: Machine
) -> Memory | None:
    """What answers of a pair take on a machine; None where the target's config says too little.

    Args:
        raw: the target's config.json.
    """
    try:
        shape, (count, size) = target_shape(raw), query_heads(raw)
        shape = shape.part(target.ranks.size, target.ranks.staged)
        count = count if target.ranks.staged else count // target.ranks.size
    except (KeyError, TypeError, ValueError):
        return None
    return Memory(
        usable=machine.usable,
        target=size_of(target.model),
        draft=size_of(draft) if draft else 0,
        shape=shape,
        context=context_of(draft.config) if draft else None,
        heads=count,
        itemsize=target.dtype.size,
        draft_itemsize=draft.dtype.size if draft else 0,
        fused=machine.kind == "metal" and size in FUSED and target.kv is None,
        kv=Kept(target.kv.bits, target.kv.group) if target.kv else None,
        draft_kv=Kept(draft.kv.bits, draft.kv.group) if draft and draft.kv else None,
        span=draft.config.span if draft else None,
        quantises=target.unquantised is None,
    )


def shared(memory: Memory | None, ranks: Ranks) -> Memory | None:
    """What rank 0 goes by, for all: its own part, and what the rank with least may use.

    None on the others; what differs between them must not decide.
    """
    usable = min(ranks.each((memory.usable if memory else 0) // MIB))
    if ranks.size == 1 or memory is None or not ranks.leads:
        return memory if ranks.size == 1 else None
    return replace(memory, usable=usable * MIB)


def context_of(config: DraftConfig) -> DraftShape:
    """What a draft keeps."""
    rows = tuple(heads(1, config.num_kv_heads, config.head_dim, w) for w in config.windows)
    return DraftShape(config.num_layers, config.block_size, len(config.taps), rows)


def size_of(module: nn.Module) -> int:
    """Bytes of a model's parameters."""
    flat = cast(list[tuple[str, mx.array]], tree_flatten(module.parameters()))
    return sum(array.nbytes for _, array in flat)
