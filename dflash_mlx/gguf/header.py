"""The header of a GGUF, held against its file.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Nothing in a header is
trusted: every string, array and tensor has to end inside the file before any of it is read.
"""

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import CheckpointError, UnsupportedError

T = TypeVar("T")


class Layout(NamedTuple):
    """How a tensor type is stored: so many elements in so many bytes."""

    name: str
    elements: int
    nbytes: int


class Tensor(NamedTuple):
    """One tensor; rows first in its shape, as MLX counts. Its bytes start at `offset`."""

    kind: int
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        layout = LAYOUTS[self.kind]
        return math.prod(self.shape) // layout.elements * layout.nbytes


LAYOUTS = {
    0: Layout("F32", 1, 4),
    1: Layout("F16", 1, 2),
    2: Layout("Q4_0", 32, 18),
    3: Layout("Q4_1", 32, 20),
    6: Layout("Q5_0", 32, 22),
    7: Layout("Q5_1", 32, 24),
    8: Layout("Q8_0", 32, 34),
    10: Layout("Q2_K", 256, 84),
    11: Layout("Q3_K", 256, 110),
    12: Layout("Q4_K", 256, 144),
    13: Layout("Q5_K", 256, 176),
    14: Layout("Q6_K", 256, 210),
    30: Layout("BF16", 1, 2),
}
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class Header(NamedTuple):
    """What a GGUF says of itself."""

    path: Path
    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        """llama, qwen3, dflash, ..."""
        return self.need("general.architecture", str)

    def need(self, key: str, kind: type[T], default: T | None = None) -> T:
        """A piece of metadata; raises CheckpointError if it is missing or of another type."""
        value = self.meta.get(key, default)
        if not isinstance(value, kind):
            raise CheckpointError(
                f"{self.path}: metadata {key} is {value!r}, expected {kind.__name__}"
            )
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """As `need`, for a number of at least 1."""
        if (value := self.need(key, int, default)) < 1:
            raise CheckpointError(f"{self.path}: metadata {key} is {value}, expected 1 or more")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """As `need`, for a float32, as it was typed: 1e-05, not 9.999999747378752e-06."""
        return float(f"{self.need(key, float, default):.7g}")


@contextmanager
def open_gguf(path: Path) -> Iterator[tuple[Header, mmap.mmap]]:
    """A GGUF's header and its bytes.

    Raises CheckpointError for what is no whole GGUF, UnsupportedError for unknown tensor types.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _read(path, data), data
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # an empty file cannot be mapped
        if path.stat().st_size:
            raise
        raise CheckpointError(f"{path}: not a whole GGUF ({error}); download it again") from None


def read_header(path: Path) -> Header:
    """As `open_gguf`, without the bytes."""
    with open_gguf(path) as (header, _):
        return header


def _read(path: Path, data: mmap.mmap) -> Header:
    try:
        return Reader(data).header(path)
    except (ValueError, struct.error, MemoryError) as error:
        raise CheckpointError(f"{path}: not a whole GGUF ({error}); download it again") from None


class Reader:
    """Reads a GGUF header; ValueError or struct.error where the file ends or makes no sense."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        self.at = 0

    def header(self, path: Path) -> Header:
        """The header, every extent in it checked."""
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not start with 'GGUF'")
        self.at = 4
        if (version := self.number("I")) not in (2, 3):
            raise ValueError(f"version {version}, expected 2 or 3")
        tensors, pairs = self.number("Q"), self.number("Q")
        meta = {self.string(): self.value(self.number("I")) for _ in range(pairs)}
        found = Header(path, meta, dict(self.tensor() for _ in range(tensors)))
        start = self.start(found.count("general.alignment", 32))
        placed = {name: self.placed(path, name, t, start) for name, t in found.tensors.items()}
        return found._replace(tensors=placed)

    def start(self, alignment: int) -> int:
        """Where the tensors' bytes begin, once the header is read."""
        return -(-self.at // alignment) * alignment

    def number(self, code: str) -> Any:
        return self.numbers(f"<{code}")[0]

    def numbers(self, code: str) -> tuple[Any, ...]:
        values = struct.unpack_from(code, self.data, self.at)
        self.at += struct.calcsize(code)
        return values

    def string(self) -> str:
        length = self.number("Q")
        self.check_end(self.at + length)
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(self.scalar(kind))
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        return list(self.numbers(f"<{count}{self.scalar(kind)}"))

    def scalar(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"metadata of unknown type {kind}")
        return _SCALARS[kind]

    def tensor(self) -> tuple[str, Tensor]:
        name = self.string()
        if (dims := self.number("I")) > 4:
            raise ValueError(f"{name} has {dims} dimensions")
        shape = self.numbers(f"<{dims}Q")[::-1]
        return name, Tensor(self.number("I"), shape, self.number("Q"))

    def placed(self, path: Path, name: str, tensor: Tensor, start: int) -> Tensor:
        """A tensor with its place in the file, which has to lie inside it."""
        if tensor.kind not in LAYOUTS:
            known = ", ".join(layout.name for layout in LAYOUTS.values())
            raise UnsupportedError(
                f"{path}: {name} has tensor type {tensor.kind}; supported: {known}"
            )
        layout = LAYOUTS[tensor.kind]
        if (tensor.shape[-1] if tensor.shape else 1) % layout.elements:
            raise ValueError(f"{name}: {tensor.shape} is in no whole {layout.name} blocks")
        tensor = tensor._replace(offset=start + tensor.offset)
        self.check_end(tensor.offset + tensor.nbytes)
        return tensor

    def check_end(self, end: int) -> None:
        if end > len(self.data):
            raise ValueError(f"expected at least {end} bytes, the file has {len(self.data)}")
