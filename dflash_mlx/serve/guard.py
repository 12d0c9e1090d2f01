"""Who may ask, from where, and how much: the layers around the API."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .refusal import Refused
from .served import Access, Limits, Line

OPEN = ("/health",)  # answered without a key: says nothing but that the server lives
NOTES = "dflash.notes"
SHOWN = 80  # characters of a path in the log

Refuse = Callable[[Scope, Refused], Response]


@dataclass
class Notes:
    """What a handler has to say of its request for the log.

    Attributes:
        status: instead of the one that was sent, where an answer ended otherwise.
        answer: figures of the answer.
    """

    status: int | None = None
    answer: dict[str, object] | None = None


class Watched:
    """Tells of every request once it is answered."""

    def __init__(self, app: ASGIApp, report: Callable[[Line], None]) -> None:
        self._app, self._report = app, report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        notes = scope[NOTES] = Notes()
        began, sent = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal sent
            if message["type"] == "http.response.start":
                sent = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            seconds = time.perf_counter() - began
            status = sent if notes.status is None else notes.status
            path = "".join(c if c.isprintable() else "?" for c in scope["path"][:SHOWN])
            self._report(Line(scope["method"], path, status, seconds, notes.answer))


class Door:
    """Refuses requests that a web page made a browser send.

    A page may have its own name lead to this machine; such a request has that name as its host.
    Others may be sent, though not read, across origins; browsers name the origin.
    """

    def __init__(self, app: ASGIApp, access: Access, refuse: Refuse) -> None:
        self._app, self._access, self._refuse = app, access, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        app = self._app
        if scope["type"] == "http" and (refused := self._check(Headers(scope=scope), scope)):
            app = self._refuse(scope, refused)
        await app(scope, receive, send)

    def _check(self, headers: Headers, scope: Scope) -> Refused | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        hosts = self._access.hosts
        if hosts is not None and name_of(host) not in hosts:
            return Refused(
                "this Host is not served; ask for localhost, or start with --allow-host",
                403,
                code="host",
            )
        own = f"{scope['scheme']}://{host}"
        if origin is not None and origin not in (own, *self._access.origins):
            return Refused(
                "this Origin is not served; start with --allow-origin to allow it",
                403,
                code="origin",
            )
        return None


class Desk:
    """Asks for a key and takes in the body, up to its limits."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, refuse: Refuse) -> None:
        self._app, self._limits, self._refuse = app, limits, refuse
        self._keys = [key.encode() for key in access.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_key(scope["path"], Headers(scope=scope))
            self._check_length(Headers(scope=scope))
            body = await self._body(receive)
        except Refused as refused:
            await self._refuse(scope, refused)(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _again(body, receive), send)

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self._keys or path in OPEN:
            return
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (token.strip() if kind.lower() == "bearer" else "")
        # Every key is compared, each in constant time.
        if not sum(secrets.compare_digest(given.encode(), key) for key in self._keys):
            raise Refused(
                "this server needs its API key, as Authorization: Bearer or x-api-key",
                401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.body:
            raise self._too_large()

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None where the client left before its end."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._limits.body:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise Refused(
                f"the request was not complete within {self._limits.body_s:g} s",
                408,
                code="timeout",
                headers={"Connection": "close"},
            ) from None

    def _too_large(self) -> Refused:
        return Refused(
            f"the request is larger than {self._limits.body} bytes; start the server with "
            "--max-body to allow more",
            413,
            code="request_too_large",
            headers={"Connection": "close"},
        )


def name_of(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _again(body: bytes, receive: Receive) -> Receive:
    """The body in one message, then what else comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
