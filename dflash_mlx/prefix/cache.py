"""The cache: sessions that begin with what others have computed.

All methods but `statistics` belong to the one thread that runs the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import UsageError
from ..loading import Pair
from ..session import Session
from . import snapshot
from .fingerprint import fingerprint
from .folder import Folder
from .snapshot import Layout
from .tree import Arrays, Entry, Match, Tree, longest, thinned

# Most templates end a prompt with a few tokens that stand otherwise, or not at all, once the
# answer is part of the next prompt (`<think>`); all known ones have fewer than this.
TAIL = 16
EVERYTHING = 1 << 62


@dataclass(frozen=True)
class PrefixOptions:
    """How much to keep, and where.

    Attributes:
        memory: bytes of arrays.
        folder: where prefixes survive a restart; None for nowhere.
        disk: bytes of files in it.
    """

    memory: int = 4 << 30
    folder: Path | None = None
    disk: int = 32 << 30

    def __post_init__(self) -> None:
        for name, value in (("memory", self.memory), ("disk", self.disk)):
            if value < 0:
                raise UsageError(f"the prefix cache's {name} is {value} bytes, expected 0 or more")


@dataclass(frozen=True)
class Statistics:
    """What the cache holds and has done.

    Attributes:
        requests, hits: sessions taken, and those that were not empty.
        asked, found: ids of all prompts, and those that did not have to be computed.
        nbytes, disk: bytes of arrays in memory, and of files.
        entries: pieces kept, in memory or on disk.
        evicted: pieces that had to leave memory.
        discarded: files that were damaged or of something else.
    """

    requests: int
    hits: int
    asked: int
    found: int
    nbytes: int
    disk: int
    entries: int
    evicted: int
    discarded: int


class PrefixCache:
    """Committed prefixes of one pair.

    Args:
        pair: target, draft and tokenizer.
        options: see `PrefixOptions`.

    Attributes:
        nbytes: of all arrays kept in memory.

    Where ranks share the target, all of them call the same methods in the same order and keep
    the same prefixes, each its part of the rows; bytes are those of the rank that keeps most.

    Raises:
        UsageError: the folder cannot be used.
    """

    def __init__(self, pair: Pair, options: PrefixOptions | None = None) -> None:
        self.pair, self.options = pair, options or PrefixOptions()
        self.nbytes = 0
        self._tree, self._clock = Tree(), 0
        self._requests = self._hits = self._asked = self._found = self._evicted = 0
        self._layout: Layout | None = None
        self._folder: Folder | None = None
        if self.options.folder is not None:
            if pair.ranks.size > 1:
                raise UsageError("a folder for prefixes needs a single process; leave it out")
            self._folder = Folder(self.options.folder, self.options.disk, self.fingerprint)
            self._restore(self._folder)

    @cached_property
    def marked(self) -> bool:
        """Whether it takes a mark to go on: for all but plain attention."""
        return bool(self.pair.ranks.largest([snapshot.is_marked(self.pair)])[0])

    @cached_property
    def fingerprint(self) -> str:
        """Of the pair; reads all weights once."""
        return fingerprint(self.pair, self.layout)

    @property
    def layout(self) -> Layout:
        """What sessions of the pair hold; takes a pass over one token if there was none yet."""
        self._layout = self._layout or Layout.of(self.pair)
        return self._layout

    def known(self, ids: Sequence[int]) -> int:
        """How much of a prompt a session would hold that `take` returns."""
        return longest(self._tree.match(ids), len(ids) - 1, self.marked)[0]

    def take(self, ids: Sequence[int], stable: Sequence[int] = ()) -> Session:
        """A session that holds as much of a prompt as is known, perhaps nothing.

        Args:
            ids: the prompt. Its last id is never held, since its logits are wanted.
            stable: places where the next prompt of a conversation may leave this one: how many ids
                it begins with, whatever the answer; by default all but a few.

        Returns:
            a session of its own, to be given to `checkpoint` and `put`.
        """
        while True:
            match = self._tree.match(ids)
            length, mark = longest(match, len(ids) - 1, self.marked)
            path = [entry for entry in match.path[1:] if entry.start < length]
            needed = [*path, *([mark] if mark else [])]
            if all(self._hold(entry) for entry in needed):
                break
        if length:
            session = snapshot.resume(self.pair, self.layout, ids[:length], path, mark)
        else:
            session = Session(self.pair.target, self.pair.draft)
        session.skips = False
        if self.marked:
            # Where this prompt leaves another one, more may do so.
            session.stops = (match.length, *(stable or (len(ids) - TAIL,)))
        self._use(needed, found=True)
        if self._folder is not None:
            self._folder.touch(needed, time.time_ns())
        self._requests, self._asked = self._requests + 1, self._asked + len(ids)
        self._hits, self._found = self._hits + bool(length), self._found + length
        self._trim()
        return session

    def checkpoint(self, session: Session) -> None:
        """Keep what a session has computed; call it between the passes of a prefill."""
        self._keep(session)
        self._trim()

    def put(self, session: Session) -> None:
        """Keep what a session has computed, on disk, too: its request is over."""
        match = self._keep(session)
        if self._folder is not None:
            self._write(self._folder, match.path[1:])
        self._trim()

    def export(self, ids: Sequence[int], root: Path) -> None:
        """Write what is kept for a text into a folder of its own, in place of what is there.

        Raises:
            UsageError: the folder cannot be used.
        """
        match = self._tree.match(ids)
        marks = [mark for end, mark in match.marks() if mark.start == end]
        # A budget of nothing clears the folder.
        with closing(Folder(root, 0, self.fingerprint)) as folder:
            folder.budget = EVERYTHING
            for entry in [*match.path[1:], *marks]:
                if self._hold(entry) and entry.arrays is not None:
                    folder.write(entry, entry.arrays, time.time_ns())
                    folder.flush()

    def merge(self, root: Path) -> None:
        """Take in what `export` has written; nothing of another pair.

        Raises:
            UsageError: the folder cannot be used.
        """
        with closing(Folder(root, EVERYTHING, self.fingerprint)) as folder:
            for entry in self._restore(folder):
                arrays = None if entry.arrays is not None else folder.read(entry, self.layout)
                if arrays is not None:
                    self._fill(entry, arrays)
        self._trim()

    def clear(self) -> None:
        """Let everything go that is in memory."""
        while (oldest := self._tree.oldest()) is not None:
            self._drop(oldest)

    def statistics(self) -> Statistics:
        """Counts so far; any thread may ask."""
        folder = self._folder
        return Statistics(
            requests=self._requests,
            hits=self._hits,
            asked=self._asked,
            found=self._found,
            nbytes=self.nbytes,
            disk=folder.nbytes if folder else 0,
            entries=self._tree.size,
            evicted=self._evicted,
            discarded=folder.discarded if folder else 0,
        )

    def flush(self) -> None:
        """Wait until all files are written."""
        if self._folder is not None:
            self._folder.flush()

    def close(self) -> None:
        """Write what waits and leave the folder."""
        if self._folder is not None:
            self._folder.close()

    def _keep(self, session: Session) -> Match:
        """Add what is new in a session; the path to its end."""
        length = snapshot.length_of(session)
        ids = session.ids[:length]
        match, largest = self._tree.match(ids), self.pair.ranks.largest
        if length and self._layout is None:
            self._layout = Layout.read(session)
        self._use(match.path[1:])
        known, last = match.length, match.path[-1]
        if known < length:
            (size,) = largest([self.layout.row_nbytes() * (length - known)])
            if sum(entry.nbytes for entry in match.path) + size > self.options.memory:
                return match  # it would drive itself out
            rows = snapshot.branch(self.layout, session, known, length)
            last = self._add(last, known, ids[known:], rows)
            match = Match([*match.path, last], length)
        if self.marked and length and length not in last.marks:
            kept = snapshot.mark(self.layout, session, length)
            missing, reach = largest([kept is None, self.layout.reach(length)])
            if kept is not None and not missing:
                self._add(last, length, (), kept).reach = reach
                for old in thinned(match, session.stops):
                    self._forget(old)
        return match

    def _add(self, parent: Entry, start: int, ids: Sequence[int], arrays: Arrays) -> Entry:
        entry = self._tree.add(parent, start, ids)
        self._fill(entry, arrays)
        self._use([entry])
        return entry

    def _fill(self, entry: Entry, arrays: Arrays) -> None:
        entry.arrays = arrays
        (entry.nbytes,) = self.pair.ranks.largest([sum(a.nbytes for a in arrays.values())])
        self.nbytes += entry.nbytes

    def _hold(self, entry: Entry) -> bool:
        """Bring an entry into memory; if it cannot be read, forget it."""
        if entry.arrays is not None:
            return True
        arrays = self._folder.read(entry, self.layout) if self._folder else None
        if arrays is None:
            self._forget(entry)
            return False
        self._fill(entry, arrays)
        return True

    def _use(self, entries: Iterable[Entry], found: bool = False) -> None:
        self._clock += 1
        for entry in entries:
            entry.used, entry.found = self._clock, entry.found or found

    def _trim(self) -> None:
        """Keep the budget."""
        while self.nbytes > self.options.memory:
            oldest = self._tree.oldest()
            assert oldest is not None
            self._evicted += 1
            self._drop(oldest)

    def _drop(self, entry: Entry) -> None:
        """Let an entry's arrays go, and the entry itself if no file has them."""
        self._release(entry)
        if self._folder is None or entry not in self._folder:
            self._forget(entry)

    def _release(self, entry: Entry) -> None:
        self.nbytes -= entry.nbytes
        entry.arrays, entry.nbytes = None, 0

    def _forget(self, entry: Entry) -> None:
        gone = self._tree.remove(entry)
        for one in gone:
            self._release(one)
        if self._folder is not None:
            self._folder.remove(gone)

    def _write(self, folder: Folder, path: Sequence[Entry]) -> None:
        now = time.time_ns()
        folder.touch(path, now)
        for entry in path:
            for one in (entry, *entry.marks.values()):
                if one.arrays is not None and one not in folder:
                    folder.write(one, one.arrays, now)

    def _restore(self, folder: Folder) -> list[Entry]:
        """Enter what is on disk, parents first; arrays are read when they are needed."""
        known = {self._tree.root.key: self._tree.root}
        for stored in folder.stored():
            if stored.parent in known:
                entry = self._tree.add(known[stored.parent], stored.start, stored.ids)
                if entry.key == stored.key:  # else the same ids are kept in other pieces
                    entry.reach = 0 if stored.ids else self.layout.reach(stored.start)
                    known[stored.key] = entry
        return list(known.values())[1:]
