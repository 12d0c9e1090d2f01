"""Which pair a row belongs to: a digest of weights, settings and versions.

Weights are read once. A matrix enters as the sums of its rows and of its columns, of the bits as
integers: reading is all it costs, and what a row or a place contributes shows.
"""

from __future__ import annotations

import hashlib
from dataclasses import is_dataclass
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..loading import Pair
from .snapshot import Layout

VERSION = 1  # of what is kept for an id; another one shares nothing
_BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint32}


def fingerprint(pair: Pair, layout: Layout) -> str:
    """64 hex digits that differ between pairs whose rows differ."""
    found = hashlib.sha256()
    versions = [f"{name} {version(name)}" for name in ("mlx", "mlx-lm")]
    _add(found, [VERSION, *versions, pair.target.taps, layout])
    _add_module(found, pair.target.model)
    if pair.draft is not None:
        _add(found, [pair.draft.config])
        _add_module(found, pair.draft)
    return found.hexdigest()


def _add_module(found: Any, model: nn.Module) -> None:
    for name, module in sorted(model.named_modules()):
        settings = {k: v for k, v in vars(module).items() if _is_plain(v)}
        _add(found, [name, type(module).__name__, *sorted(settings.items())])
        arrays = sorted((k, v) for k, v in module.items() if isinstance(v, mx.array))
        sums = [part for _, array in arrays for part in _sums(array)]
        mx.eval(sums)
        _add(found, [(key, array.shape, str(array.dtype)) for key, array in arrays])
        for part in sums:
            found.update(np.asarray(part))


def _add(found: Any, parts: list[Any]) -> None:
    found.update(repr(parts).encode())


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str | tuple) or is_dataclass(value)


def _sums(array: mx.array) -> list[mx.array]:
    if not array.size:
        return []
    if array.ndim == 0:
        array = array[None]
    bits = array.view(_BITS[array.dtype.size]).reshape(-1, array.shape[-1])
    return [bits.sum(axis=0), bits.sum(axis=1)]
