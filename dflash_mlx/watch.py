"""Whether the other ranks still live, seen apart from what they exchange.

Where a process ends while others are in a pass with it, MLX may let these wait for ever, and no
signal ends them. So every rank holds a connection to rank 0 on which nothing is said but goodbye.
If it closes without, the process at its other end is gone, and so is this one soon.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ranks import Ranks

log = logging.getLogger(__name__)

GRACE = 15.0  # seconds for errors that are found in another way; a server sends its last answers
CONNECT = 2.0  # seconds to reach rank 0 by one of its names
GOODBYE = b"."


def end(rank: int) -> None:
    """End this process, if it has not ended by itself."""
    time.sleep(GRACE)
    print(
        f"error: process {rank}, which holds a part of the model, has ended; "
        "its own output says why; start all of them again",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


class Watch:
    """Watches the others; all ranks make one at the same time.

    Args:
        ranks: of this process.
        gone: called in a thread of its own with the number of a rank that has ended.
    """

    def __init__(self, ranks: Ranks, gone: Callable[[int], None] = end) -> None:
        self._gone, self._left = gone, False
        self._others: dict[int, socket.socket] = {}
        if ranks.size == 1:
            return
        if ranks.leads:
            self._await(ranks)
        else:
            names, port, token = ranks.share()
            self._reach(names, port, bytes.fromhex(token) + bytes([ranks.rank]))
            ranks.each(bool(self._others))
        for rank, other in self._others.items():
            name = f"watch of process {rank}"
            threading.Thread(target=self._look, args=(rank, other), name=name, daemon=True).start()

    def leave(self) -> None:
        """Say goodbye: nothing is done together any more."""
        self._left = True
        for other in self._others.values():
            with suppress(OSError):
                other.sendall(GOODBYE)

    def _await(self, ranks: Ranks) -> None:
        token = secrets.token_bytes(16)
        with socket.create_server(("", 0), backlog=64) as listener:
            ranks.share([_names(), listener.getsockname()[1], token.hex()])
            count = sum(ranks.each(False))
            self._accept(listener, token, count)
        if count < ranks.size - 1:
            log.warning("only %d of %d processes reach process 0", count, ranks.size - 1)

    def _reach(self, names: Sequence[str], port: int, hello: bytes) -> None:
        for name in names:
            with suppress(OSError):
                self._others[0] = socket.create_connection((name, port), CONNECT)
                self._others[0].settimeout(None)
                self._others[0].sendall(hello)
                return

    def _accept(self, listener: socket.socket, token: bytes, count: int) -> None:
        """Take the connections of so many ranks; whoever does not know the token is none."""
        listener.settimeout(CONNECT)
        while len(self._others) < count:
            try:
                other, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError):
                other.settimeout(CONNECT)
                hello = other.recv(len(token) + 1, socket.MSG_WAITALL)
                other.settimeout(None)
                if secrets.compare_digest(hello[:-1], token):
                    self._others[hello[-1]] = other
                    continue
            other.close()

    def _look(self, rank: int, other: socket.socket) -> None:
        with other:
            try:
                said = other.recv(1)
            except OSError:
                said = b""
        if said != GOODBYE and not self._left:
            self._gone(rank)


def _names() -> list[str]:
    """What this machine may be reached by."""
    names = [socket.gethostname()]
    with suppress(OSError):
        names += socket.gethostbyname_ex(names[0])[2]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("192.0.2.1", 9))  # nothing is sent; the system picks the address of a way out
        names.append(way.getsockname()[0])
    return list(dict.fromkeys([*names, "127.0.0.1"]))
