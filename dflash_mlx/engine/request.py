"""A request on its way: prompt, rounds, end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..generation import Course, Response, Telling
from ..loading import Pair
from ..options import Options
from ..session import Chunk
from ..stats import Round
from .prefixes import Prefixes
from .ticket import Ticket


class Request:
    """What an engine knows of a request. All but the constructor is for the model thread.

    Args:
        prompt: ids, checked.
        memory: bytes that its caches may come to need.
        stable: as of `Prefixes.take`.

    Attributes:
        number: what ranks know it by.
        course: where the generation stands; None while it waits, and at the end.
        done: ids of the prompt computed so far.
        cached: ids of it that did not have to be.
        over: whether the last response has been told.
    """

    def __init__(
        self,
        prompt: list[int],
        options: Options,
        ticket: Ticket,
        memory: int = 0,
        stable: Sequence[int] = (),
    ) -> None:
        self.prompt, self.options, self.ticket, self.memory = prompt, options, ticket, memory
        self.stable = stable
        self.number = 0
        self.course: Course | None = None
        self.done = self.cached = 0
        self.over = False
        self._chunks: Iterator[Chunk] = iter(())

    @property
    def at_work(self) -> Course:
        """The course of a request that has a place."""
        assert self.course is not None
        return self.course

    def begin(self, pair: Pair, prefixes: Prefixes) -> None:
        """Take a place."""
        session = prefixes.take(self.prompt, self.stable)
        self._telling = Telling(pair, self.options)
        self.course = Course(pair, self.prompt, self.options, session, self._telling.stats)
        self._chunks = self.course.prefill()

    def read(self, prefixes: Prefixes, chunk: int) -> Round | None:
        """Compute the next `chunk` tokens of the prompt; the first token once none is left."""
        self.at_work.chunk = chunk  # does not change once the first was read
        part = next(self._chunks, None)
        if part is not None:
            self.done, self.cached = part.done, part.cached
            prefixes.checkpoint(self.at_work.session)
            if part.logits is None:
                return None
            next(self._chunks, None)  # nothing is left but the first token
        return self.at_work.first()

    def round(self) -> Round:
        """The next round."""
        return self.at_work.next()

    def tell(self, round_: Round) -> Response:
        """Hand a round on to the consumer."""
        response = self._telling.add(round_)
        self.over = response.finish_reason is not None
        self.ticket.tell(response)
        return response

    def cut(self) -> None:
        """End the answer with what there is of it."""
        if self.course is not None and not self.over:
            self.ticket.tell(self._telling.cut())

    def leave(self, prefixes: Prefixes, error: BaseException | None) -> None:
        """Give the session back and tell the consumer how it ended."""
        self._chunks = iter(())
        course, self.course = self.course, None
        try:
            if course is not None:
                if error is not None:
                    course.session.forget()
                prefixes.put(course.session)
        finally:
            self.ticket.tell(error)
