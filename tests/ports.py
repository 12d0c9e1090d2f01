"""Ports of this machine that nobody listens on."""

import socket
import sys
from contextlib import ExitStack
from pathlib import Path

LAUNCH = Path(sys.executable).with_name("mlx.launch")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        opened = [_opened(stack, 0) for _ in range(count)]
        return [each.getsockname()[1] for each in opened]


def free_run(count: int) -> int:
    """The first of so many in a row."""
    while True:
        with ExitStack() as stack:
            first: int = _opened(stack, 0).getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    _opened(stack, port)
            except (OSError, OverflowError):
                continue
            return first


def launched(processes: int, *command: str) -> list[str]:
    """A command line that runs `command` in several processes by `mlx.launch`.

    Its own choice of ports is always the same, and tests run side by side.
    """
    port = str(free_run(processes))
    options = ["-n", str(processes), "--backend", "ring", "--starting-port", port]
    return [str(LAUNCH), *options, "--", *command]


def _opened(stack: ExitStack, port: int) -> socket.socket:
    return stack.enter_context(socket.create_server(("127.0.0.1", port)))
