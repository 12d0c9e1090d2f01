"""From the engine's ticket to the wire: without blocking the loop, and only as long as the client
stays."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..engine import Engine, Ticket
from ..errors import Busy, DFlashError, UsageError
from ..generation import Response as Round
from ..options import Options
from .answer import Answer
from .calls import dumps
from .parts import Outcome, Part
from .prompt import Prompt
from .refusal import Refused, busy, of_usage

log = logging.getLogger(__name__)

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
OK, CLIENT_LEFT = 200, 499  # the latter in the log alone: nobody is there to read it


class Encoder(Protocol):
    """How one API writes one answer."""

    keep_alive: str  # what is sent while nothing happens

    def begin(self) -> Iterable[str]:
        """The events before the first part."""

    def part(self, part: Part) -> Iterable[str]:
        """The events of a part."""

    def end(self, outcome: Outcome) -> Iterable[str]:
        """The events behind the last part."""

    def fail(self, error: Refused) -> Iterable[str]:
        """The events of an answer that breaks off."""

    def whole(self, parts: Sequence[Part], outcome: Outcome) -> dict[str, object]:
        """The answer as one object."""


class Json(JSONResponse):
    """JSON that holds whatever a model wrote."""

    def render(self, content: object) -> bytes:
        """UTF-8; what it cannot hold stays escaped."""
        return dumps(content).encode()


def event(data: object, name: str | None = None) -> str:
    """A server-sent event."""
    return f"{f'event: {name}' + chr(10) if name else ''}data: {dumps(data)}\n\n"


class Running:
    """A request in the engine, followed from the event loop.

    Raises:
        UsageError, Busy: as `Engine.submit`.
    """

    def __init__(self, engine: Engine, prompt: Prompt, options: Options) -> None:
        loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

        def notify() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._news.set)

        self._ticket: Ticket = engine.submit(prompt.ids, options, notify, prompt.stable)

    async def rounds(self, patience: float) -> AsyncIterator[Round | None]:
        """The responses; None whenever nothing came for `patience` seconds."""
        while True:
            self._news.clear()
            try:
                response = self._ticket.get(timeout=0)
            except TimeoutError:
                if not await self._news_within(patience):
                    yield None
                continue
            if response is None:
                return
            yield response

    async def _news_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def cancel(self) -> None:
        """Free its place within a round."""
        self._ticket.cancel()


class AnswerResponse(Response):
    """Answers a request, and stops computing when its client leaves.

    Args:
        running: the request in the engine.
        answer: takes its rounds.
        encoder: writes its parts.
        stream: as events, or one object at the end.
        patience: seconds after which a silent stream says that it lives.
        finished: told the outcome; None where there was none.
        error: how the API writes an error.
        headers: to send along.
    """

    def __init__(
        self,
        running: Running,
        answer: Answer,
        encoder: Encoder,
        *,
        stream: bool,
        patience: float,
        finished: Callable[[Outcome | None, int], None],
        error: Callable[[Refused], Response],
        headers: dict[str, str],
    ) -> None:
        self._running, self._answer, self._encoder = running, answer, encoder
        self._stream, self._patience = stream, patience
        self._finished, self._error, self._more = finished, error, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the answer while watching for the client to leave."""
        write = self._events(send) if self._stream else self._object(scope, receive, send)
        writing = asyncio.ensure_future(write)
        leaving = asyncio.ensure_future(_left(receive))
        status = CLIENT_LEFT
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                with suppress(OSError):
                    status = writing.result()
        finally:
            self._running.cancel()
            for task in (writing, leaving):
                task.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await writing
            self._finished(self._answer.outcome, status)

    async def _rounds(self) -> AsyncIterator[Round | None]:
        """The rounds of the answer, up to where it is complete."""
        async for round_ in self._running.rounds(self._patience):
            yield round_
            if self._answer.outcome is not None:
                return
        raise RuntimeError("the engine left an answer without its end")

    async def _events(self, send: Send) -> int:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        headers += [(k.lower().encode(), v.encode()) for k, v in (HEADERS | self._more).items()]
        await send({"type": "http.response.start", "status": OK, "headers": headers})
        status = OK
        try:
            await _write(send, self._encoder.begin())
            async for round_ in self._rounds():
                await self._round(send, round_)
            assert self._answer.outcome is not None
            await _write(send, self._encoder.end(self._answer.outcome))
        except Exception as error:
            refused = refusal_of(error)
            status = refused.status
            await _write(send, self._encoder.fail(refused))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return status

    async def _round(self, send: Send, round_: Round | None) -> None:
        if round_ is None:
            await _write(send, [self._encoder.keep_alive])
        else:
            written = (e for p in self._answer.add(round_) for e in self._encoder.part(p))
            await _write(send, written)

    async def _object(self, scope: Scope, receive: Receive, send: Send) -> int:
        parts: list[Part] = []
        response: Response
        try:
            async for round_ in self._rounds():
                parts += self._answer.add(round_) if round_ else ()
            assert self._answer.outcome is not None
            whole = self._encoder.whole(parts, self._answer.outcome)
            response = Json(whole, headers=self._more)
        except Exception as error:
            response = self._error(refusal_of(error))
        await response(scope, receive, send)
        return response.status_code


async def _write(send: Send, events: Iterable[str]) -> None:
    text = "".join(events)
    if text:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def refusal_of(error: Exception) -> Refused:
    """What a client is told about an error; a bug is logged and told as no more than that."""
    if isinstance(error, Busy):
        return busy(error)
    if isinstance(error, UsageError):
        return of_usage(error)
    if isinstance(error, DFlashError):
        return Refused(str(error), 500, code="server_error")
    log.error("a request failed", exc_info=error)
    return Refused("the server failed; its log says how", 500, code="server_error")
