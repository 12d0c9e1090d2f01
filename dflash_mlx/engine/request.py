"""A request on its way: prompt, rounds, end."""

from __future__ import annotations

from collections.abc import Iterator

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

    Attributes:
        course: where the generation stands; None while it waits, and at the end.
        done: ids of the prompt computed so far.
        over: whether the last response has been told.
    """

    def __init__(self, prompt: list[int], options: Options, ticket: Ticket, memory: int) -> None:
        self.prompt, self.options, self.ticket, self.memory = prompt, options, ticket, memory
        self.course: Course | None = None
        self.done = 0
        self.over = False
        self._chunks: Iterator[Chunk] = iter(())

    def begin(self, pair: Pair, prefixes: Prefixes) -> None:
        """Take a place."""
        session = prefixes.take(self.prompt)
        self._telling = Telling(pair, self.options)
        self.course = Course(pair, self.prompt, self.options, session, self._telling.stats)
        self._chunks = self.course.prefill()

    def read(self) -> Chunk | None:
        """Compute one chunk of the prompt; None where there is nothing left of it."""
        return next(self._chunks, None)

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
