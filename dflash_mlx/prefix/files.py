"""One branch or mark as a file.

A safetensors file whose metadata say what it is. Its name is the entry's key and the SHA-256 of
its content, so that it need not be believed: nothing a request contains gets into a name but by
way of a digest.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import shards
from ..checkpoint import read_file, read_metadata
from ..errors import CheckpointError
from .tree import Arrays, Entry, key_of

FORMAT = "dflash-mlx prefix"
VERSION = 1
SUFFIX = ".safetensors"
_NAME = re.compile(r"([0-9a-f]{32})\.([0-9a-f]{32})\.safetensors")


@dataclass(frozen=True)
class Stored:
    """A file and what it says it holds.

    Attributes:
        parent: key of the entry that it leaves.
        used: time of last use in ns.
    """

    path: Path
    key: str
    parent: str
    start: int
    ids: tuple[int, ...]
    size: int
    used: int


def is_ours(path: Path) -> bool:
    """Whether a file is called as one of another pair would be, its folder included."""
    return bool(_NAME.fullmatch(path.name) and re.fullmatch("[0-9a-f]{32}", path.parent.name))


def write_entry(folder: Path, entry: Entry, arrays: Arrays, pair: str, used: int) -> Stored:
    """Write a file, whole or not at all, for the user's eyes only.

    Args:
        folder: must exist.
        entry: what is written.
        arrays: evaluated.
        pair: fingerprint of the pair.
        used: time of last use in ns.

    Raises:
        OSError: it cannot be written.
    """
    assert entry.parent is not None
    metadata = {
        "kind": FORMAT,
        "version": str(VERSION),
        "pair": pair,
        "parent": entry.parent.key,
        "start": str(entry.start),
        "ids": json.dumps(entry.ids, separators=(",", ":")),
    }
    scratch = folder / f".{entry.key}.unfinished"
    scratch.unlink(missing_ok=True)
    os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        written = shards.write(scratch, shards.lazy(dict(arrays)), lambda _: None, metadata)
        os.utime(scratch, ns=(used, used))
        final = folder / f"{entry.key}.{written.sha256[:32]}{SUFFIX}"
        os.replace(scratch, final)
    finally:
        scratch.unlink(missing_ok=True)
    size = written.size
    return Stored(final, entry.key, entry.parent.key, entry.start, entry.ids, size, used)


def describe(path: Path, pair: str) -> Stored:
    """What a file says it holds; its data is not read yet.

    Raises:
        CheckpointError: it is damaged, or of another pair or version.
        OSError: it cannot be read.
    """
    name = _NAME.fullmatch(path.name)
    said = read_metadata(path) if name else {}
    if name is None or said.get("kind") != FORMAT:
        raise CheckpointError("it is no prefix file")
    if said.get("version") != str(VERSION):
        raise CheckpointError(f"it has version {said.get('version')!r}, expected {VERSION}")
    if said.get("pair") != pair:
        raise CheckpointError("it belongs to another pair or another release of MLX")
    parent, start, ids = str(said.get("parent")), *_numbers(said)
    if key_of(parent, start, ids) != name[1]:
        raise CheckpointError("it does not hold what its name says")
    stat = path.stat()
    return Stored(path, name[1], parent, start, ids, stat.st_size, stat.st_mtime_ns)


def read_arrays(stored: Stored) -> Arrays:
    """The arrays of a file, evaluated.

    Raises:
        CheckpointError: it was changed since it was written.
        OSError: it cannot be read.
    """
    path = stored.path
    if shards.digest(path).sha256[:32] != path.name.split(".")[1]:
        raise CheckpointError("its checksum is wrong")
    arrays = read_file(path)
    mx.eval(arrays)
    return arrays


def _numbers(said: dict[str, Any]) -> tuple[int, tuple[int, ...]]:
    try:
        start, ids = int(said["start"]), json.loads(said["ids"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise CheckpointError("its start or ids are unreadable") from None
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**31 for i in ids):
        raise CheckpointError("its ids are no ids")
    if not 0 <= start < 2**31:
        raise CheckpointError("its start is no position")
    return start, tuple(ids)


def unfinished(folder: Path) -> Sequence[Path]:
    """What a process that was killed has left."""
    return list(folder.glob(".*.unfinished"))
