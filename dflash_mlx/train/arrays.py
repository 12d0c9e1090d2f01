"""Small things about arrays that several stages share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten


def read_arrays(file: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, each read from disk when it is used."""
    return cast(dict[str, mx.array], mx.load(str(file), format="safetensors"))


def write_arrays(file: Path, arrays: dict[str, mx.array]) -> None:
    """Write a safetensors file, whole or not at all."""
    temporary = file.with_name(f".{file.name}")
    mx.save_safetensors(str(temporary), arrays, {"format": "mlx"})
    temporary.replace(file)


def flat(tree: Any) -> dict[str, mx.array]:
    """A tree of arrays by their names."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(tree)))


def number(array: mx.array) -> float:
    """A scalar's value."""
    return float(cast(float, array.item()))
