"""Entries on disk: many files, a budget, and a thread that writes them.

Every pair has a folder of its own inside the given one, and all of them share the budget: files
that went unused for longest are removed, whichever pair they belong to. One process at a time
uses the folder.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import CheckpointError, UsageError
from .files import SUFFIX, Stored, describe, is_ours, read_arrays, unfinished, write_entry
from .snapshot import Layout
from .tree import ROOT, Arrays, Entry

log = logging.getLogger("dflash_mlx")

WAITING = 2 << 30  # bytes that may wait to be written; what comes then is not kept on disk
OVERHEAD = 1 << 16  # a file's header, with some of its ids


class Folder:
    """The files of one pair.

    Args:
        root: the folder; made for the user alone if it is not there.
        budget: bytes of all files in it.
        pair: fingerprint.

    Raises:
        UsageError: it cannot be made, or another process uses it.
    """

    def __init__(self, root: Path, budget: int, pair: str) -> None:
        self.budget, self.discarded = budget, 0
        self._pair = pair
        self._own = root / pair[:32]
        try:
            for folder in (root, self._own):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FileLock(root / ".lock", timeout=0, mode=0o600, thread_local=False)
            self._lock.acquire()
        except Timeout:
            raise UsageError(f"{root} is used by another process; name another folder") from None
        except OSError as error:
            raise UsageError(f"{root} cannot be used: {error.strerror or error}") from error
        self._guard = threading.Lock()
        self._files: dict[str, Stored] = {}
        self._foreign: list[Stored] = []
        self._queued: dict[str, Arrays] = {}
        self._queue: queue.Queue[tuple[Entry, Arrays, int] | None] = queue.Queue()
        self._scan(root)
        self._thread = threading.Thread(target=self._run, name="prefix writer", daemon=True)
        self._thread.start()

    @property
    def nbytes(self) -> int:
        """Of all files."""
        with self._guard:
            return self._size()

    @property
    def waiting(self) -> int:
        """Bytes that are not written yet."""
        with self._guard:
            return sum(_nbytes(arrays) for arrays in self._queued.values())

    def stored(self) -> list[Stored]:
        """The files of this pair, parents before what leaves them."""
        with self._guard:
            return sorted(self._files.values(), key=lambda f: (f.start, not f.ids))

    def __contains__(self, entry: Entry) -> bool:
        """Whether an entry is on disk, or will be soon."""
        with self._guard:
            return entry.key in self._files or entry.key in self._queued

    def write(self, entry: Entry, arrays: Arrays, used: int) -> None:
        """Have an entry written, some time soon; `used` as in `touch`."""
        if self.waiting + _nbytes(arrays) > WAITING:
            log.info("the disk is too slow: a prefix is kept in memory only")
            return
        with self._guard:
            self._queued[entry.key] = arrays
        self._queue.put((entry, arrays, used))

    def read(self, entry: Entry, layout: Layout) -> Arrays | None:
        """The arrays of an entry; None, and no such file any longer, where that fails."""
        with self._guard:
            queued, stored = self._queued.get(entry.key), self._files.get(entry.key)
        if queued is not None or stored is None:
            return queued
        try:
            arrays = read_arrays(stored)
            if not layout.fits(entry, arrays):
                raise CheckpointError("its arrays are not those of this pair")
            return arrays
        except (CheckpointError, OSError) as error:
            self._warn(stored.path, error)
            self.remove([entry])
            return None

    def touch(self, entries: Iterable[Entry], used: int) -> None:
        """Note when these were used, in ns; parents are never older than what leaves them."""
        with self._guard:
            for entry in entries:
                stored = self._files.get(entry.key)
                if stored is not None and _touch(stored.path, used):
                    self._files[entry.key] = replace(stored, used=used)

    def remove(self, entries: Iterable[Entry]) -> None:
        """Remove files, if there are any."""
        with self._guard:
            for entry in entries:
                stored = self._files.pop(entry.key, None)
                if stored is not None:
                    stored.path.unlink(missing_ok=True)

    def flush(self) -> None:
        """Wait until everything is written."""
        self._queue.join()

    def close(self) -> None:
        """Write what waits and let other processes use the folder."""
        self._queue.put(None)
        self._thread.join()
        self._lock.release()

    def _scan(self, root: Path) -> None:
        for path in unfinished(self._own):
            path.unlink(missing_ok=True)
        for path in sorted(root.glob(f"*/*{SUFFIX}")):
            if path.parent != self._own and not is_ours(path):
                continue
            try:
                self._enter(path)
            except (CheckpointError, OSError) as error:
                self._warn(path, error)
                path.unlink(missing_ok=True)
        self._drop_orphans()
        self._fit(0)

    def _enter(self, path: Path) -> None:
        if path.parent == self._own:
            stored = describe(path, self._pair)
            self._files[stored.key] = stored
        else:
            stat = path.stat()
            self._foreign.append(Stored(path, "", "", 0, (), stat.st_size, stat.st_mtime_ns))

    def _drop_orphans(self) -> None:
        """Remove what leaves something that is not there."""
        known: dict[str, Stored] = {}
        for stored in sorted(self._files.values(), key=lambda f: (f.start, not f.ids)):
            parent = known.get(stored.parent)
            if _leaves(stored, parent):
                known[stored.key] = stored
            else:
                stored.path.unlink(missing_ok=True)
        self._files = known

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            entry, arrays, used = item
            try:
                self._write(entry, arrays, used)
            except Exception as error:  # whoever waits for the queue must not wait for ever
                log.warning("a prefix is not kept on disk: %s", error)
            finally:
                with self._guard:
                    self._queued.pop(entry.key, None)
                del item, arrays
                self._queue.task_done()

    def _write(self, entry: Entry, arrays: Arrays, used: int) -> None:
        size = _nbytes(arrays) + OVERHEAD + 8 * len(entry.ids)
        with self._guard:
            whole = entry.parent is not None and (
                entry.parent.parent is None or entry.parent.key in self._files
            )
            if not whole or size > self.budget:
                return
            self._fit(size)
        stored = write_entry(self._own, entry, arrays, self._pair, used)
        with self._guard:
            self._files[entry.key] = stored

    def _fit(self, size: int) -> None:
        """Remove what went unused for longest until `size` more bytes fit."""
        files = [*self._files.values(), *self._foreign]
        left = self._size() + size
        # What leaves another is never newer; of equally old ones it goes first.
        for stored in sorted(files, key=lambda f: (f.used, -f.start, bool(f.ids))):
            if left <= self.budget:
                return
            stored.path.unlink(missing_ok=True)
            left -= stored.size
            if stored.key:
                del self._files[stored.key]
            else:
                self._foreign.remove(stored)

    def _size(self) -> int:
        return sum(stored.size for stored in [*self._files.values(), *self._foreign])

    def _warn(self, path: Path, error: Exception) -> None:
        self.discarded += 1
        log.warning("%s is discarded: %s", path.name, " ".join(str(error).split()))


def _leaves(stored: Stored, parent: Stored | None) -> bool:
    """Whether a file's parent is the root, or one that it can leave where it says."""
    if parent is None:
        return stored.start == 0 and bool(stored.ids) and stored.parent == ROOT
    return bool(parent.ids) and parent.start < stored.start <= parent.start + len(parent.ids)


def _touch(path: Path, used: int) -> bool:
    try:
        os.utime(path, ns=(used, used))
    except OSError:
        return False
    return True


def _nbytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
