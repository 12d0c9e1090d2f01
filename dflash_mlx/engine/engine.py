"""Many requests with one pair: who gets a place, and what the model does next.

One thread owns the model and everything that is an array. Between two rounds it lets requests
join and leave, and computes one chunk of one prompt: however long a prompt is, those that are
being decoded wait for a chunk of it at most, and a short prompt waits for no long one, as those
that join take turns. Requests get their places in the order they came; one whose caches would not
fit beside those of the running ones waits, and all behind it, until they do.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Self

import mlx.core as mx

from ..errors import Busy, DFlashError, UsageError
from ..generation import limit_of
from ..loading import Pair
from ..options import Options
from ..stats import Round
from .memory import available, sizes_of
from .options import Counters, EngineOptions
from .orders import Orders, kept, rest
from .places import Places
from .prefixes import Fresh, Prefixes
from .request import Request
from .sharing import Group, Sharing
from .ticket import Ticket
from .together import share

log = logging.getLogger(__name__)

GONE = 1.0  # seconds to wait for the rest of a thread


class Engine:
    """Decodes many requests with one pair.

    Args:
        pair: while the engine lives, nothing else may generate with it.
        options: see `EngineOptions`.
        prefixes: where known parts of prompts come from; nowhere if None.

    Where several ranks share the target, rank 0 has the engine, inside `Ranks.lead`, and the others
    `several.follow`.

    Attributes:
        failure: what ended the model thread, and with it everything; None as long as it lives.

    Raises:
        DFlashError: other ranks cannot have such prefixes, or one has ended.
    """

    def __init__(
        self,
        pair: Pair,
        options: EngineOptions = EngineOptions(),  # noqa: B008 - frozen
        prefixes: Prefixes | None = None,
    ) -> None:
        self.pair, self.options = pair, options
        self._prefixes = prefixes or Fresh(pair)
        self._kept = kept(self._prefixes, pair.ranks)
        self._sizes = sizes_of(pair)
        self._limit = available(pair) if options.memory is None else options.memory
        self._sharing = Sharing(pair, options.together)
        self._places = Places(options, self._limit)
        self._joining: deque[Request] = deque()  # this and what follows: the model thread's
        self._running: list[Request] = []
        self._orders, self._numbers = Orders(pair.ranks), count(1)
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="dflash-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self,
        prompt: Sequence[int],
        options: Options,
        notify: Callable[[], None] | None = None,
        stable: Sequence[int] = (),
    ) -> Ticket:
        """Ask for an answer; from any thread.

        Args:
            prompt: ids, at least one.
            options: see `Options`.
            notify: see `Ticket`.
            stable: as of `Prefixes.take`.

        Raises:
            UsageError: this can never run: the prompt or the options do not fit the pair, or the
                caches would not fit into memory even alone.
            Busy: as many wait already as may, or the engine is closed.
        """
        tokens = len(prompt) + limit_of(self.pair, prompt, options)
        need = max(size.bytes(tokens) for size in self._sizes)
        if need > self._limit:
            raise UsageError(
                f"{tokens} tokens of prompt and answer need {_mib(need)} for caches and there are "
                f"{_mib(self._limit)}; shorten the prompt or ask for fewer tokens"
            )
        ticket = Ticket(self._places.notice, notify)
        self._places.enter(Request(list(prompt), options, ticket, need, stable))
        return ticket

    @property
    def counters(self) -> Counters:
        """What the engine has done so far."""
        return self._places.counters

    def close(self) -> None:
        """End all answers, and the thread.

        Running ones end with what they have, as if `max_tokens` had been reached; for waiting ones
        the consumer gets `Busy`.
        """
        self._places.close()
        self._thread.join()
        atexit.unregister(self.close)
        # Before 3.13 Python does not wait for the last a thread does: MLX drops what it compiled,
        # for which it needs the interpreter, and were that gone, Linux would end the process.
        remains = Path(f"/proc/self/task/{self._thread.native_id}")
        end = time.monotonic() + GONE
        while remains.exists() and time.monotonic() < end:
            time.sleep(0.001)

    # The model thread.

    def _run(self) -> None:
        ranks = self.pair.ranks
        engine = {"kept": self._kept, "max_context": self.pair.max_context}
        try:
            with ranks.meeting(), ranks.running("engine", **engine):
                while self._goes_on():
                    self._turn()
                self._abandon(None)
                with self._orders.give("end"):
                    pass
        except Exception as error:
            self.failure = error
            if ranks.size > 1:
                self._orders.lost, self._prefixes = True, Fresh(self.pair)
            self._abandon(error)
            if not isinstance(error, DFlashError):
                raise

    def _goes_on(self) -> bool:
        """Wait until there is something to do; False once closed."""
        busy = bool(self._joining or self._running)
        if not busy and self.pair.ranks.size > 1:
            with self._orders.give("rest"):
                rest(self.pair.ranks, self._places.news)
        return self._places.sleep(busy=busy)

    def _turn(self) -> None:
        """What happens between two rounds, and a round of each request."""
        for request in [*self._joining, *self._running]:
            if request.ticket.cancelled:
                self._leave(request)
        for request in self._places.give_up():
            request.ticket.tell(None)
        while joins := self._places.next():
            self._joining.append(joins)
            self._attempt(joins, self._begin)
        if self._joining:
            self._joining.rotate(-1)
            self._attempt(self._joining[-1], self._read)
        by_course = {r.course: r for r in self._running if r.course is not None}
        for group in self._sharing.groups(list(by_course)):
            requests = [by_course[course] for course in group.courses]
            if len(requests) > 1:
                self._share(group, requests)
            else:
                self._attempt(requests[0], self._round)

    def _attempt(self, request: Request, work: Callable[[Request], None]) -> None:
        """Do something for a request; what fails ends this one alone."""
        try:
            work(request)
        except Exception as error:  # the consumer raises it
            if self._orders.lost:
                raise
            self._leave(request, error)
        else:
            if request.over:
                self._leave(request)

    def _begin(self, request: Request) -> None:
        request.number = next(self._numbers)
        options = request.options.as_dict()
        what = {"prompt": request.prompt, "options": options, "stable": list(request.stable)}
        with self._orders.give("begin", [request], **what):
            self.pair.ranks.together(lambda: request.begin(self.pair, self._prefixes))

    def _read(self, request: Request) -> None:
        """A chunk of the prompt, and behind the last one the first token."""
        done, chunk = request.done, request.at_work.chunk
        with self._orders.give("read", [request], chunk=chunk):
            first = request.read(self._prefixes, chunk)
        self._places.count(prefilled=request.done - done)
        if first is None:
            return
        self._joining.remove(request)
        self._running.append(request)
        tokens = len(request.tell(first).tokens)
        self._places.count(tokens=tokens, cached=request.cached)

    def _share(self, group: Group, requests: Sequence[Request]) -> None:
        """A round of several requests in one pass; what fails ends them all."""
        began = time.perf_counter()
        try:
            with self._orders.give("share", requests, width=group.width):
                rounds, accepted = share(self.pair, group.courses, group.width)
        except Exception as error:  # the consumers raise it
            if self._orders.lost:
                raise
            for request in requests:
                self._leave(request, error)
            return
        self._sharing.learn(group, accepted, time.perf_counter() - began)
        for request, round_ in zip(requests, rounds, strict=True):
            self._attempt(request, partial(self._tell, round_=round_))

    def _round(self, request: Request) -> None:
        with self._orders.give("round", [request]):
            round_ = request.round()
        self._tell(request, round_)

    def _tell(self, request: Request, round_: Round) -> None:
        response = request.tell(round_)
        self._places.count(
            tokens=len(response.tokens),
            rounds=1,
            drafted=round_.drafted,
            accepted=response.accepted,
        )

    def _leave(self, request: Request, error: Exception | None = None) -> None:
        """Free the place of a request that has ended, however it did."""
        for group in (self._joining, self._running):
            if request in group:
                group.remove(request)
        how = "failed" if error else "finished" if request.over else "cancelled"
        self._places.leave(request, how)
        try:
            with self._orders.give("leave", [request], failed=error is not None):
                request.leave(self._prefixes, error)
        except Exception:
            if self._orders.lost and self.failure is None:
                raise
            log.exception("a session could not be stored")
        if not (self._joining or self._running):
            mx.clear_cache()

    def _abandon(self, error: Exception | None) -> None:
        """End everything."""
        for request in [*self._joining, *self._running]:
            if error is None:
                request.cut()
            self._leave(request, error)
        self._places.close()
        gone = Busy("the engine was closed before this request ran", retry_after=1.0)
        for request in self._places.give_up(all_of_them=True):
            request.ticket.tell(error or gone)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
