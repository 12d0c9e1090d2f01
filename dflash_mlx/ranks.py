"""The processes that run one pair together, and how they stay together.

Each process (a *rank*) holds a part of the target and the whole draft, and all of them run the same
passes in the same order: a pass computes only where everyone takes part. So nothing may be
decided twice. Rank 0, which leads, decides what was drafted and accepted; its arrays replace
those of the others inside the very pass that made them (`decide`), so that no rounding can part
them. Between passes rank 0 says what comes next (`running`, `go_on`), and the others follow.

What is exchanged between passes are small arrays on the CPU; an answer or a prompt is waited for
in such an exchange, never in a pass on the GPU, which macOS would end after some seconds.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast
from weakref import WeakKeyDictionary, finalize

import mlx.core as mx

from .errors import DFlashError, UsageError
from .watch import Watch

T = TypeVar("T")
Shard = Literal["tensor", "pipeline"]
STOP, GO = 1, 2
FIRST = 256  # bytes of a value that its length brings along
LOST = ("[ring]", "[jaccl]", "[mpi]")  # how errors of connections begin


class Stopped(Exception):
    """On a rank that follows: rank 0 has left the generation that is under way."""


class Ranks:
    """The processes that run a pair; one is alone without a group.

    Args:
        group: of `mx.distributed`, all of its processes.
        shard: how they share the target: parts of every layer, or layers.

    Attributes:
        rank: which one this is; 0 leads.
        size: how many they are.
    """

    def __init__(self, group: mx.distributed.Group | None = None, shard: Shard = "tensor") -> None:
        self.group = group
        self.shard = shard
        self.rank = 0 if group is None else int(group.rank())
        self.size = 1 if group is None else int(group.size())
        self._running = self._inside = self._interrupted = False
        self._waited_for = True  # by the others, for an order
        self._names: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._named = 0
        self._gone: list[int] = []

    @property
    def leads(self) -> bool:
        """Whether this one decides, reads and prints."""
        return self.rank == 0

    @property
    def staged(self) -> bool:
        """Whether the ranks hold layers of their own, one after the other."""
        return self.size > 1 and self.shard == "pipeline"

    @property
    def description(self) -> str:
        """In words."""
        return f"{self.shard} over {self.size} processes" if self.size > 1 else "one process"

    @property
    def stage(self) -> int:
        """Which of the stages that run one after the other this rank runs."""
        return self.rank if self.staged else 0

    # In passes.

    def decide(self, mine: mx.array) -> mx.array:
        """Rank 0's values of an array that every rank has computed in its own way."""
        return self.take(mine, 0)

    def take(self, mine: mx.array, source: int) -> mx.array:
        """The values of rank `source`; the same shape and dtype everywhere.

        What a rank has itself stays in its graph, so that all of them run the same operations.
        """
        if self.size == 1:
            return mine
        # A sum rather than send and receive: it has an input, so it stays where it is in a pass.
        share = mx.where(mx.array(self.rank == source), mine, mx.zeros_like(mine))
        return mx.distributed.all_sum(share, group=self.group)

    # Between passes.

    def agree(self, number: int) -> int:
        """Rank 0's number, a 32-bit integer."""
        return self._numbers([number] if self.leads else [0])[0]

    def share(self, value: Any = None, source: int = 0) -> Any:
        """The value of rank `source`, on every rank; all of them must call this.

        For what has to be the same before a pass: prompts, options, who joins or leaves a batch.

        Args:
            value: what JSON holds (tuples arrive as lists); only that of `source` counts.
            source: whose.
        """
        if self.size == 1:
            return value
        data = json.dumps(value).encode() if self.rank == source else b""
        data = len(data).to_bytes(4, "little") + data if data else b""
        first = bytes(self._numbers(list(data[:FIRST].ljust(FIRST, b"\0")), mx.uint8))
        end = 4 + int.from_bytes(first[:4], "little")
        if end > FIRST:
            rest = list(data[FIRST:]) or [0] * (end - FIRST)
            first += bytes(self._numbers(rest, mx.uint8))
        return json.loads(first[4:end])

    def together(self, work: Callable[[], T]) -> T:
        """Let every rank do its own `work`, without passes; where one fails, all of them do.

        Raises:
            DFlashError: that of the first rank that has failed.
        """
        if self.size == 1:
            return work()
        made: T | None = None
        error: DFlashError | None = None
        try:
            made = work()
        except DFlashError as caught:
            error = caught
        failed = self.each(error is not None)
        if not any(failed):
            return cast(T, made)
        first = failed.index(1)
        message = self.share([socket.gethostname(), str(error)], first)
        if first == self.rank and error is not None:
            raise error
        raise DFlashError(f"process {first} on {message[0]}: {message[1]}") from None

    def same(self, number: int) -> bool:
        """Whether the ranks, if they share the target by layers, have the same number."""
        return not self.staged or len(set(self.each(number))) == 1

    def each(self, number: int) -> list[int]:
        """The number of every rank, 32-bit integers."""
        return self._numbers([number if r == self.rank else 0 for r in range(self.size)])

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Of each of some 64-bit integers, the largest that a rank has."""
        if self.size == 1:
            return list(numbers)
        count = len(numbers)
        mine = [0] * (count * self.size)
        mine[count * self.rank : count * (self.rank + 1)] = numbers
        all_of_them = self._numbers(mine, mx.int64)
        return [max(all_of_them[i::count]) for i in range(count)]

    # What rank 0 does, and the others follow.

    def name(self, thing: object | None) -> int | None:
        """A number that stands for an object of rank 0 as long as that lives."""
        if thing is None or self.size == 1:
            return None
        if thing not in self._names:
            self._named += 1
            self._names[thing] = self._named
            finalize(thing, self._gone.append, self._named)
        return self._names[thing]

    @contextmanager
    def lead(self) -> Iterator[None]:
        """On rank 0, all it does with a pair; with it ends `several.follow` on the others.

        Where another process ends meanwhile, this one does, too, if no error says so before.

        Raises:
            DFlashError: another rank has ended.
        """
        with self.meeting():
            watch = Watch(self)
            try:
                yield
            finally:
                if self._waited_for:
                    self._order("end", {})
                    watch.leave()

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Passes that all take part in: an error that says that one is gone becomes a line."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not str(error).startswith(LOST):
                raise
            raise DFlashError(
                f"a process that holds a part of the model has ended ({error}); "
                "its own output says why; start all of them again"
            ) from error

    @contextmanager
    def running(self, kind: str, **what: Any) -> Iterator[None]:
        """Passes that rank 0 orders; on the others, which were ordered to, those passes.

        Ctrl-C waits for their end, or for `go_on`.

        Args:
            kind: what `several.follow` knows them by.
            what: what it needs for them, as JSON holds it.

        Raises:
            UsageError: others are under way.
        """
        if self.size == 1:
            yield
            return
        if self._running:
            raise UsageError("several processes give one answer at a time; finish the other first")
        self._running = self._inside = True
        try:
            if self.leads:
                self._order(kind, what)
            self._waited_for = False
            yield
            self._waited_for = True
        finally:
            self._running = self._inside = False
        self._check_interrupt()

    @contextmanager
    def outside(self, last: bool = False) -> Iterator[None]:
        """In `running`, code of the caller's; if that leaves here, the others are told.

        Args:
            last: nothing comes behind it, which all ranks know.
        """
        if self.size == 1:
            yield
            return
        self._inside = False
        try:
            self._check_interrupt()
            yield
        except BaseException:
            if self.leads and not last:
                self.agree(STOP)
            self._waited_for = True
            raise
        finally:
            self._inside = True

    def go_on(self) -> None:
        """In `running`, between passes: rank 0 lets all of them go on, unless interrupted.

        Raises:
            KeyboardInterrupt: on rank 0.
            Stopped: on the others, if rank 0 does not go on.
        """
        if self.size > 1:
            with self.outside():
                pass
            if self.agree(GO) == STOP:
                raise Stopped

    def interrupt(self, *_: object) -> None:
        """Handle SIGINT on rank 0: in passes it waits, or the others would wait for ever."""
        self._interrupted = True
        if not self._inside:
            self._check_interrupt()

    def _check_interrupt(self) -> None:
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def _order(self, kind: str, what: dict[str, Any]) -> None:
        if self.size > 1:
            gone = [self._gone.pop() for _ in range(len(self._gone))]
            self.share({"kind": kind, "gone": gone, **what})

    def _numbers(self, mine: list[int], dtype: mx.Dtype = mx.int32) -> list[int]:
        """The sums of the ranks' numbers."""
        if self.size == 1:
            return mine
        total = mx.distributed.all_sum(mx.array(mine, dtype), group=self.group, stream=mx.cpu)
        return cast(list[int], total.tolist())


ALONE = Ranks()


def join(shard: Shard | Literal["off"] | None = None) -> Ranks:
    """The processes that this one was started with, by `mlx.launch`.

    Args:
        shard: how they share the target, by tensor parallelism if None. "off" takes no notice of
            other processes.

    Raises:
        UsageError: a way to share is named, but there is no other process.
    """
    if shard == "off":
        return ALONE
    group = mx.distributed.init()
    if group.size() > 1:
        return Ranks(group, shard or "tensor")
    if shard is not None:
        raise UsageError(
            f"--shard {shard} shares a model among processes, but this is the only one; "
            "start several with mlx.launch -n 2, or leave out --shard"
        )
    return ALONE
