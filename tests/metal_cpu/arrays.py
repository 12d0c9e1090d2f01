"""Buffers of a kernel from MLX arrays, and MLX arrays from buffers.

numpy lends the memory; it has no bfloat16, so those pass as uint16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import mlx.core as mx
import numpy as np

from .signature import Parameter


@dataclass
class Argument:
    """Memory of one buffer parameter: bytes, item size, input or output."""

    name: str
    data: np.ndarray  # one-dimensional, uint8
    itemsize: int
    output: bool = False
    filled: bool = True


def input_argument(p: Parameter, view: np.ndarray) -> Argument:
    if p.kind == "input":
        return Argument(p.name, span(view), view.dtype.itemsize)
    if p.kind == "shape":
        values = np.array(view.shape, np.int32)
    elif p.kind == "strides":
        values = np.array([s // view.dtype.itemsize for s in view.strides], np.int64)
    else:
        values = np.array([view.ndim], np.int32)
    return Argument(p.name, values.view(np.uint8), values.dtype.itemsize)


def span(view: np.ndarray) -> np.ndarray:
    """All bytes between the first and the last element of an array with positive strides."""
    if view.size == 0:
        return np.zeros(0, np.uint8)
    if view.flags.c_contiguous:
        return view.reshape(-1).view(np.uint8)
    extent = sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
    whole = np.lib.stride_tricks.as_strided(view, (extent // view.itemsize + 1,), (view.itemsize,))
    return whole.view(np.uint8)


def to_numpy(x: mx.array, row_contiguous: bool) -> np.ndarray:
    """The array's own memory and strides; bfloat16 as uint16."""
    mx.eval(x)
    view = np.asarray(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x)
    if row_contiguous or any(s < 0 for s in view.strides):
        view = np.ascontiguousarray(view).reshape(view.shape)
    return view


def output_argument(
    name: str, shape: Sequence[int], dtype: mx.Dtype, init_value: float | None
) -> Argument:
    if init_value is None:
        return Argument(name, np.empty(prod(shape) * dtype.size, np.uint8), dtype.size, True, False)
    filled = to_numpy(mx.full(tuple(shape), init_value, dtype), True)
    return Argument(name, span(filled).copy(), dtype.size, True)


def to_mlx(data: np.ndarray, shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    raw = mx.array(data)
    if dtype == mx.bool_:
        return (raw != 0).reshape(tuple(shape))
    return raw.view(dtype).reshape(tuple(shape))
