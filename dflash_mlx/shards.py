"""Safetensors written tensor by tensor.

A tensor is computed when its turn comes, written and let go, so that no more of a model is in
memory than the largest one and what it is made of, however large the file grows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from .checkpoint import WEIGHTS
from .errors import UnsupportedError

SHARD_BYTES = 5 << 30  # as mlx-lm has it
CHUNK = 16 << 20
# Told after every write how many bytes it was.
Wrote = Callable[[int], None]

_NAMES = {
    **{mx.bool_: "BOOL", mx.uint8: "U8", mx.int8: "I8", mx.uint16: "U16", mx.int16: "I16"},
    **{mx.uint32: "U32", mx.int32: "I32", mx.uint64: "U64", mx.int64: "I64"},
    **{mx.float16: "F16", mx.bfloat16: "BF16", mx.float32: "F32", mx.complex64: "C64"},
}


class Tensor(NamedTuple):
    """A tensor that is not computed yet."""

    shape: tuple[int, ...]
    dtype: mx.Dtype
    compute: Callable[[], mx.array]

    @property
    def nbytes(self) -> int:
        """Its size in a file."""
        return math.prod(self.shape) * self.dtype.size


class Written(NamedTuple):
    """A file, by content."""

    size: int
    sha256: str


def lazy(arrays: dict[str, mx.array]) -> dict[str, Tensor]:
    """Arrays that MLX has not computed yet, as tensors; `arrays` is emptied."""
    return {name: _lazy(arrays.pop(name)) for name in list(arrays)}


def _lazy(array: mx.array) -> Tensor:
    return Tensor(array.shape, array.dtype, lambda: array)


def split(tensors: Mapping[str, Tensor], limit: int) -> dict[str, dict[str, Tensor]]:
    """Distribute tensors, in order, over files of at most `limit` bytes, named as mlx-lm does.

    A larger tensor gets a file of its own.
    """
    found: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if found[-1] and size + tensor.nbytes > limit:
            found.append({})
            size = 0
        found[-1][name] = tensor
        size += tensor.nbytes
    if len(found) == 1:
        return {WEIGHTS: found[0]}
    count = len(found)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": s for i, s in enumerate(found, 1)}


def index(shards: Mapping[str, Mapping[str, Tensor]]) -> bytes | None:
    """The content of model.safetensors.index.json; None where one file holds everything."""
    if list(shards) == [WEIGHTS]:
        return None
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard.values())
    homes = {name: file for file, shard in shards.items() for name in shard}
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(homes.items()))}
    return json.dumps(content, indent=4).encode()


def write(
    path: Path,
    tensors: dict[str, Tensor],
    wrote: Wrote,
    metadata: Mapping[str, str] | None = None,
) -> Written:
    """Write a file that is on the disk when this returns; `tensors` is emptied.

    Args:
        path: where; an existing file is written over.
        tensors: in the order of the file.
        wrote: told after every write how many bytes it was.
        metadata: goes into the header.

    Raises:
        OSError: the disk is full, among others.
        UnsupportedError: safetensors has no name for a dtype.
    """
    header = _header(tensors, metadata or {})
    found, size = hashlib.sha256(), 0
    with path.open("wb") as file:

        def put(data: bytes | memoryview) -> None:
            nonlocal size
            file.write(data)
            found.update(data)
            size += len(data)
            wrote(len(data))

        put(header)
        for name in list(tensors):
            # Popped, so that nothing holds it any longer once its bytes are written.
            for chunk in _chunks(_bytes(tensors.pop(name))):
                put(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Written(size, found.hexdigest())


def digest(path: Path) -> Written:
    """A file that is there already, by content."""
    found, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
            size += len(chunk)
    return Written(size, found.hexdigest())


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "mlx", **metadata}}
    at = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise UnsupportedError(f"{name} is {tensor.dtype}, which safetensors does not have")
        place = [at, at + tensor.nbytes]
        shape = list(tensor.shape)
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": place}
        at += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes(tensor: Tensor) -> memoryview:
    array = tensor.compute()
    assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype)
    if not array.size:
        return memoryview(b"")
    flat = mx.contiguous(array).reshape(-1)
    return memoryview(flat.view(mx.uint8))  # type: ignore[arg-type] # it has the buffer protocol


def _chunks(data: memoryview) -> list[memoryview]:
    return [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
