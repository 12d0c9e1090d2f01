"""A folder that comes to be whole or not at all, and whose making can be taken up again.

    .NAME.convert/        beside the output, while it is being made
      manifest.json       what is being made, and the hash of every finished shard
      out/                what becomes NAME by one rename at the end
      old/                what NAME was, where it is being replaced

A shard is written under another name, brought to the disk, renamed and only then entered in the
manifest. So a process that is killed leaves shards that are whole or unknown, and nothing that
`load` takes: config.json comes last.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import UsageError
from ..paths import cache_root
from ..shards import Written, digest

SPARE = 64 << 20  # bytes that stay free, for what is not counted
Writer = Callable[[Path], Written]


class Work:
    """One conversion under way; made by `open_work`."""

    def __init__(self, final: Path, key: Mapping[str, Any]) -> None:
        self.final = final
        self.folder = _work_folder(final)
        self.out = self.folder / "out"
        self.written: dict[str, Written] = {}
        self._key = dict(key)
        self._resume()

    def done(self, name: str) -> bool:
        """Whether an earlier run has finished this file."""
        return name in self.written

    def put(self, name: str, writer: Writer) -> None:
        """Let `writer` write a file, unless an earlier run has."""
        if self.done(name):
            return
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f"{path.name}.part")
        written = writer(half)
        half.rename(path)
        self.written[name] = written
        self._note()

    def text(self, name: str, content: bytes) -> None:
        """Write a small file, unless it is there."""
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != content:
            _write(path, content)

    def finish(self) -> None:
        """Let the finished folder take its place."""
        old = self.folder / "old"
        if self.final.exists():
            shutil.rmtree(old, ignore_errors=True)
            self.final.rename(old)
        self.out.rename(self.final)
        shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Leave nothing; what the output was before comes back."""
        old = self.folder / "old"
        if old.exists() and not self.final.exists():
            old.rename(self.final)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _resume(self) -> None:
        found = _manifest(self.folder / "manifest.json")
        if found.get("key") != self._key:
            self.discard()
            self.out.mkdir(parents=True)
            self._note()
            return
        for name, (size, sha256) in found["done"].items():
            path = self.out / name
            if path.is_file() and digest(path) == (size, sha256):
                self.written[name] = Written(size, sha256)

    def _note(self) -> None:
        content = {"key": self._key, "done": self.written}
        _write(self.folder / "manifest.json", json.dumps(content).encode())


@contextmanager
def open_work(final: Path, key: Mapping[str, Any], need: int, *, force: bool) -> Iterator[Work]:
    """Begin or take up the making of `final`.

    Left by Ctrl-C or an error, what is finished stays for the next run; a full disk leaves
    nothing.

    Args:
        key: what the whole folder is made from; JSON. Work with another key is thrown away.
        need: bytes to be written in all.
        force: replace `final`.

    Raises:
        UsageError: `final` is in the way, the disk is too full, or another process is at it.
    """
    check_free(final, force)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _lock(final).acquire(timeout=0):
            work = Work(final, json.loads(json.dumps(key)))
            check_space(final, need - sum(w.size for w in work.written.values()))
            yield work
    except Timeout:
        raise UsageError(f"{final} is being made by another process; wait for it") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise UsageError(f"{final} cannot be written: {error.strerror or error}") from error
        work.discard()
        raise UsageError(
            f"{final}: the disk is full; free {need >> 20} MiB and run the command again"
        ) from error


def check_free(final: Path, force: bool) -> None:
    """Refuse an output that is in the way, or that is nothing `force` should replace.

    Raises UsageError.
    """
    if not final.exists() and not final.is_symlink():
        return
    if not force:
        raise UsageError(f"{final} exists; name another folder with --out, or add --force")
    is_model = any((final / name).is_file() for name in ("config.json", "pair.json"))
    if final.is_symlink() or not final.is_dir() or (any(final.iterdir()) and not is_model):
        raise UsageError(f"{final} is no folder of a model; --force replaces only those")


def check_space(final: Path, need: int) -> None:
    """Refuse to begin what does not fit.

    Raises UsageError.
    """
    there = next(path for path in (final, *final.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if free < need + SPARE:
        raise UsageError(
            f"{final} needs {need + SPARE >> 20} MiB, {free >> 20} MiB are free; free some space "
            "or choose fewer bits"
        )


def _lock(final: Path) -> FileLock:
    """Where this package keeps files of its own, so that none is left beside the output."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(final.absolute()).encode()).hexdigest()[:16]
    return FileLock(folder / f"convert-{name}.lock")


def _work_folder(final: Path) -> Path:
    return final.parent / f".{final.name}.convert"


def _manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("done"), dict) else {}


def _write(path: Path, content: bytes) -> None:
    """All of it or what was there before, even if the power fails."""
    half = path.with_name(f"{path.name}.part")
    with half.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    half.rename(path)
