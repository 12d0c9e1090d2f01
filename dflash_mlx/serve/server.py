"""The server: a socket, uvicorn on it, and an end that leaves no answer hanging."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from ..engine import Engine
from ..errors import UsageError
from .app import application
from .served import Served

GRACE = 10  # seconds that answers have to be sent once they were ended
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Server(uvicorn.Server):
    """Ends the engine before the connections: running answers end with what they have."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all answers, then wait until they are sent."""
        await asyncio.to_thread(self._engine.close)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end: also where the engine cannot go on."""
        return await super().on_tick(counter) or self._engine.failure is not None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the server; they are not raised again, as work follows."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, not listening yet: it is known early whether it is free.

    Raises:
        UsageError: it is not, or there is none of that name.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"{host} is no address of this machine: {error.strerror}") from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise UsageError(
            f"port {port} of {host} cannot be used: {error.strerror}; choose another with --port"
        ) from error
    return opened


def address(opened: socket.socket) -> str:
    """The base URL of a socket, `http://127.0.0.1:8080`."""
    host, port = opened.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(opened: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    host = opened.getsockname()[0]
    return bool(host == "::1" or host.startswith("127."))


def server(served: Served) -> Server:
    """A server that has not started."""
    config = uvicorn.Config(
        application(served),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    return Server(config, served.engine)


def run(served: Served, opened: socket.socket) -> None:
    """Serve until a signal comes.

    Raises:
        DFlashError: the engine could not go on.
    """
    server(served).run(sockets=[opened])
    if served.engine.failure is not None:
        raise served.engine.failure
