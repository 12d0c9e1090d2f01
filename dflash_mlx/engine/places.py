"""Who waits, who has a place, and what is counted: what all threads share."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace

from ..errors import Busy
from .options import Counters, EngineOptions
from .request import Request

RECENT = 0.2  # weight of a request's time in the average over the latest ones


class Places:
    """The places of an engine and the queue before them.

    Args:
        options: how many there are.
        memory: bytes that the requests with a place may come to need.
    """

    def __init__(self, options: EngineOptions, memory: int) -> None:
        self._options = options
        self._wake = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._began: dict[Request, float] = {}
        self._counters = Counters(memory_limit=memory)
        self._took = 0.0  # seconds a request keeps its place, about
        self._closed = False

    @property
    def counters(self) -> Counters:
        """What was counted so far."""
        with self._wake:
            return replace(self._counters, waiting=len(self._waiting))

    def enter(self, request: Request) -> None:
        """Have a request wait.

        Raises:
            Busy: as many wait already as may, or nothing runs any more.
        """
        with self._wake:
            if self._closed:
                raise Busy("the engine is closed", retry_after=1.0)
            free = self._options.places - self._counters.running
            if len(self._waiting) >= self._options.queue + free:
                self.count(refused=1)
                # One place in the queue gets free each time that a request ends.
                after = max(1.0, self._took / self._options.places)
                raise Busy(f"{len(self._waiting)} requests wait already; try again later", after)
            self._waiting.append(request)
            self._wake.notify()

    def next(self) -> Request | None:
        """Give a place to the request that waits longest; None where it does not fit."""
        with self._wake:
            if not self._waiting or self._counters.running >= self._options.places:
                return None
            need = self._waiting[0].memory
            if self._counters.memory + need > self._counters.memory_limit:
                return None
            self.count(running=1, memory=need)
            request = self._waiting.popleft()
            self._began[request] = time.monotonic()
            return request

    def leave(self, request: Request, how: str) -> None:
        """Free the place of a request that is "finished", "failed" or "cancelled"."""
        with self._wake:
            took = time.monotonic() - self._began.pop(request)
            if how == "finished":
                self._took += (took - self._took) * (RECENT if self._took else 1.0)
            self.count(**{how: 1}, running=-1, memory=-request.memory)

    def give_up(self, *, all_of_them: bool = False) -> list[Request]:
        """Take cancelled requests, or all, out of the queue."""
        with self._wake:
            gone = [r for r in self._waiting if all_of_them or r.ticket.cancelled]
            self._waiting = deque(r for r in self._waiting if r not in gone)
            self.count(cancelled=len(gone))
            return gone

    def sleep(self, *, busy: bool) -> bool:
        """Wait until there is something to do; False once closed."""
        with self._wake:
            while not (busy or self._closed or self._waiting):
                self._wake.wait()
            return not self._closed

    def news(self, seconds: float) -> bool:
        """Whether there is something to do for one that is not busy, within so many seconds."""
        with self._wake:
            return self._wake.wait_for(lambda: self._closed or bool(self._waiting), seconds)

    def notice(self) -> None:
        """Something may have changed."""
        with self._wake:
            self._wake.notify()

    def close(self) -> None:
        """Let nobody in any more."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def count(self, **more: int) -> None:
        """Add to counters."""
        with self._wake:
            old = self._counters
            changes = {name: getattr(old, name) + n for name, n in more.items()}
            self._counters = replace(old, **changes)
