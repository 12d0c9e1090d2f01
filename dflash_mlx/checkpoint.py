"""Strict reading of a folder with config.json and safetensors.

`mx.load` trusts a file's header and reads the data only when it is used, so a download that
broke off would surface much later, or never. Every header is therefore held against its file
first, by the rules of https://huggingface.co/docs/safetensors (little-endian u64 header length,
JSON header, tensors back to back without holes).
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import mlx.core as mx

from .errors import CheckpointError, UnsupportedError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000
AGAIN = "download it again"

_BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2},
    **{"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "C64": 8},
}


class _Entry(NamedTuple):
    """Where a tensor lies in the data part of its file."""

    begin: int
    end: int
    name: str


def read_config(folder: Path) -> dict[str, object]:
    """Read `folder/config.json`.

    Raises CheckpointError if it is missing, not UTF-8, not JSON or not an object, and
    UnsupportedError if it names a `model_file`, which asks for its own Python to be run.
    `auto_map` asks for the same of other programs and is ignored: nothing here imports it.
    """
    config = read_json(folder / "config.json")
    if "model_file" in config:
        raise UnsupportedError(
            f"{folder / 'config.json'} asks to run its own code (model_file: "
            f"{config['model_file']!r}); code from checkpoints is never run"
        )
    return config


def read_tensors(folder: Path) -> dict[str, mx.array]:
    """Read `model.safetensors`, or the shards named in `model.safetensors.index.json`.

    Arrays keep the dtypes and shapes of the file and are read from disk when first used.
    Raises CheckpointError for damaged, truncated, missing or contradictory files, and
    UnsupportedError for pickles and for dtypes MLX does not have.
    """
    if (folder / WEIGHTS).is_file():
        check_file(folder / WEIGHTS)
        return _load(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    raise _no_weights(folder)


class Shaped(Protocol):
    """An array, or what becomes one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def check_names(
    tensors: Mapping[str, Shaped], expected: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """Refuse unknown, missing or wrongly shaped tensors with a CheckpointError that names them.

    `expected` maps every name to its shape; `source` says in the message whose tensors these are.
    """
    if missing := expected.keys() - tensors.keys():
        raise CheckpointError(f"{source}: missing tensors: {_some(missing)}")
    if unknown := tensors.keys() - expected.keys():
        raise CheckpointError(f"{source}: unknown tensors: {_some(unknown)}")
    wrong = [
        f"{name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if tensors[name].shape != tuple(shape)
    ]
    if wrong:
        raise CheckpointError(f"{source}: wrong shapes: {_some(wrong)}")


def shard_names(folder: Path) -> dict[str, str]:
    """Read the map from tensor name to file name in `folder/model.safetensors.index.json`.

    Raises CheckpointError if it is malformed or names a file outside the folder.
    """
    path = folder / INDEX
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{path}: no weight_map; {AGAIN}")
    for name in shards.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise CheckpointError(f"{path}: {name!r} is not the name of a file in this folder")
    return cast(dict[str, str], shards)


def _read_shards(folder: Path) -> dict[str, mx.array]:
    index = shard_names(folder)
    files = sorted(set(index.values()))
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder}: missing shards: {_some(absent)}; {AGAIN}")
    tensors: dict[str, mx.array] = {}
    for file in files:
        names = check_file(folder / file)
        if twice := names & tensors.keys():
            raise CheckpointError(f"{folder / file}: also in another shard: {_some(twice)}")
        if lost := {name for name, home in index.items() if home == file} - names:
            raise CheckpointError(f"{folder / file}: in the index only: {_some(lost)}; {AGAIN}")
        tensors.update(_load(folder / file))
    return tensors


def _load(path: Path) -> dict[str, mx.array]:
    try:
        return cast(dict[str, mx.array], mx.load(str(path), format="safetensors"))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}; {AGAIN}") from error


def read_file(path: Path) -> dict[str, mx.array]:
    """Read one safetensors file as `read_tensors` does."""
    check_file(path)
    return _load(path)


def read_metadata(path: Path) -> dict[str, object]:
    """What a safetensors file says about itself; its header is checked against the file.

    Raises CheckpointError for a file that is damaged or truncated.
    """
    check_file(path)
    metadata = _header(path, path.stat().st_size)[1].get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: its metadata is no JSON object; {AGAIN}")
    return metadata


def check_file(path: Path) -> set[str]:
    """Hold a safetensors header against its file and return the names in it."""
    size = path.stat().st_size
    length, header = _header(path, size)
    header.pop("__metadata__", None)
    entries = sorted(_entry(path, name, value) for name, value in header.items())
    at = 0
    for begin, end, name in entries:
        if begin != at:
            raise CheckpointError(f"{path}: {name} starts at {begin}, expected {at}; {AGAIN}")
        at = end
    if (expected := 8 + length + at) != size:
        raise CheckpointError(f"{path}: expected {expected} bytes, the file has {size}; {AGAIN}")
    return {entry.name for entry in entries}


def _header(path: Path, size: int) -> tuple[int, dict[str, object]]:
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= MAX_HEADER:
            raise CheckpointError(f"{path} is not a safetensors file; {AGAIN}")
        if 8 + length > size:
            raise CheckpointError(
                f"{path}: expected at least {8 + length} bytes, the file has {size}; {AGAIN}"
            )
        header = _parse(path, file.read(length))
    return length, header


def _entry(path: Path, name: str, value: object) -> _Entry:
    """Check one tensor of a header by itself: its dtype, shape and extent agree."""
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            if not all(type(n) is int and n >= 0 for n in shape) or not 0 <= begin <= end:
                raise CheckpointError(f"{path}: {name} has a malformed shape or place; {AGAIN}")
        case _:
            raise CheckpointError(f"{path}: {name} lacks dtype, shape or data_offsets; {AGAIN}")
    if dtype not in _BYTES:
        known = ", ".join(_BYTES)
        raise UnsupportedError(f"{path}: {name} has dtype {dtype}; MLX reads {known}")
    if (nbytes := math.prod(shape) * _BYTES[dtype]) != end - begin:
        raise CheckpointError(
            f"{path}: {name}, {dtype} {shape}, takes {nbytes} bytes, not {end - begin}; {AGAIN}"
        )
    return _Entry(begin, end, name)


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object; raises CheckpointError for anything else."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a model folder has one") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return _parse(path, data)


def _parse(path: Path, data: bytes) -> dict[str, object]:
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8 text; {AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); {AGAIN}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object; {AGAIN}")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands twice")
    return values


def _some(names: Iterable[str]) -> str:
    """The first five of `names` and the count of the rest."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(ordered[:5]) + rest


def _no_weights(folder: Path) -> CheckpointError | UnsupportedError:
    if not folder.is_dir():
        return CheckpointError(f"{folder} is not a folder; expected one with {WEIGHTS}")
    for pickle in sorted([*folder.glob("*.bin"), *folder.glob("*.pt")]):
        return UnsupportedError(
            f"{folder} has only {pickle.name}; pickles are not read; convert to safetensors"
        )
    return CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}; {AGAIN}")
