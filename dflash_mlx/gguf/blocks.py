"""The numbers in a GGUF's tensors.

The plain and the old quantised types are unpacked here, in float32, which holds every product of
a 16-bit scale and a small integer exactly. The K-quants are nested deeper; the `gguf` package of
llama.cpp's authors unpacks them.
"""

from __future__ import annotations

from collections.abc import Callable
from mmap import mmap

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .header import LAYOUTS, Tensor

SLAB = 64 << 20  # bytes of float32 at a time
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def read_tensor(data: mmap, tensor: Tensor, dtype: mx.Dtype) -> mx.array:
    """A tensor in `dtype`, unpacked in slabs of rows."""
    width = tensor.shape[-1] if tensor.shape else 1
    layout = LAYOUTS[tensor.kind]
    row = width // layout.elements * layout.nbytes
    # Copied, so that nothing of ours keeps the map from being closed.
    count = tensor.nbytes // row
    slab = max(1, SLAB // (4 * width))
    parts = []
    for first in range(0, count, slab):
        begin = tensor.offset + first * row
        raw = np.frombuffer(data[begin : begin + min(slab, count - first) * row], np.uint8)
        parts.append(mx.array(unpack(tensor.kind, raw)).astype(dtype))
        mx.eval(parts[-1])
    whole = parts[0] if len(parts) == 1 else mx.concatenate(parts)
    return whole.reshape(tensor.shape)


def unpack(kind: int, raw: Bytes) -> Floats:
    """Flat float32 values of whole blocks."""
    if kind in _PLAIN:
        return _PLAIN[kind](raw)
    layout = LAYOUTS[kind]
    if kind in _BLOCKS:
        return _BLOCKS[kind](raw.reshape(-1, layout.nbytes)).reshape(-1)
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        raise UsageError(
            f"a GGUF with {layout.name} tensors needs the package gguf: pip install '.[gguf]'"
        ) from None
    blocks = raw.reshape(-1, layout.nbytes)
    values: Floats = dequantize(blocks, GGMLQuantizationType(kind)).astype(np.float32)
    return values.reshape(-1)


def _float32(raw: Bytes) -> Floats:
    return raw.view(np.float32)


def _float16(raw: Bytes) -> Floats:
    return raw.view(np.float16).astype(np.float32)


def _bfloat16(raw: Bytes) -> Floats:
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _scales(blocks: Bytes, place: int) -> Floats:
    return np.ascontiguousarray(blocks[:, place : place + 2]).view(np.float16).astype(np.float32)


def _nibbles(blocks: Bytes) -> Floats:
    """Both halves of every byte: 16 low ones, then 16 high ones."""
    return np.concatenate([blocks & 15, blocks >> 4], axis=1).astype(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return (_nibbles(blocks[:, 2:]) - 8) * _scales(blocks, 0)


def _q4_1(blocks: Bytes) -> Floats:
    return _nibbles(blocks[:, 4:]) * _scales(blocks, 0) + _scales(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _scales(blocks, 0)


_PLAIN: dict[int, Callable[[Bytes], Floats]] = {0: _float32, 1: _float16, 30: _bfloat16}
_BLOCKS: dict[int, Callable[[Bytes], Floats]] = {2: _q4_0, 3: _q4_1, 8: _q8_0}
