"""Clients that leave, streams that are silent, servers that end."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dflash_mlx.errors import UsageError
from dflash_mlx.serve.served import Limits, Line, Served
from dflash_mlx.serve.server import address, bound, is_loopback

from .serving import HELLO, Scripted, agent_pair, listening, real_server

CHAT = "/v1/chat/completions"
LONG = {"messages": HELLO, "max_tokens": 1500}
SCRIPT = """
from tests.serving import agent_pair, in_letters
from dflash_mlx.engine import Engine
from dflash_mlx.serve.served import Served
from dflash_mlx.serve.server import address, bound, run
pair = agent_pair()
opened = bound("127.0.0.1", 0)
print(opened.getsockname()[1], flush=True)
with Engine(pair) as engine:
    run(Served(pair, engine, ("tiny",), in_letters(pair)), opened)
print("ended", flush=True)
"""


def open_request(url: str, body: dict[str, Any], path: str = CHAT) -> http.client.HTTPConnection:
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(body), headers)
    return connection


def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(stream: bool) -> None:
    lines: list[Line] = []
    with real_server(report=lines.append) as (url, served):
        engine = served.engine
        connection = open_request(url, LONG | {"stream": stream})
        until(lambda: engine.counters.tokens > 2)
        assert connection.sock is not None
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        until(lambda: engine.counters.running == 0)
        assert engine.counters.cancelled == 1
        assert engine.counters.tokens < 1500
        until(lambda: bool(lines))
    assert lines[0].status == 499


def test_one_that_waits_leaves_the_queue() -> None:
    pair = agent_pair()
    engine = Scripted(pair)
    engine.holds = True
    served: Any = Served(pair, engine, ("tiny",))  # type: ignore[arg-type]
    with listening(served) as url:
        connection = open_request(url, LONG)
        until(lambda: len(engine.tickets) == 1)
        connection.close()
        until(lambda: engine.tickets[0].cancelled)


@pytest.mark.parametrize(
    ("path", "sign"), [(CHAT, b": keep-alive"), ("/v1/messages", b"event: ping")]
)
def test_a_silent_stream_says_that_it_lives(path: str, sign: bytes) -> None:
    pair = agent_pair()
    engine = Scripted(pair)
    engine.holds = True
    served: Any = Served(pair, engine, ("tiny",), limits=Limits(keep_alive_s=0.02))  # type: ignore
    with listening(served) as url:
        connection = open_request(url, LONG | {"stream": True}, path)
        response = connection.getresponse()
        assert response.getheader("content-type", "").startswith("text/event-stream")
        seen = 0
        while seen < 3:
            seen += response.readline().startswith(sign)
        connection.close()
        until(lambda: engine.tickets[0].cancelled)


def test_the_loop_is_not_blocked_by_answers() -> None:
    with real_server() as (url, served):
        busy = [open_request(url, LONG) for _ in range(4)]
        until(lambda: served.engine.counters.running == 4)
        asking = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        asking.request("GET", "/health")
        assert asking.getresponse().status == 200
        asking.close()
        assert served.engine.counters.running == 4
        for connection in busy:
            connection.close()


def test_a_signal_ends_streams_and_the_process() -> None:
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=root, stdout=subprocess.PIPE, env=os.environ
    )
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        until(lambda: _answers(url))
        connection = open_request(url, LONG | {"stream": True})
        response = connection.getresponse()
        for _ in range(6):
            response.readline()
        process.send_signal(signal.SIGTERM)
        rest = response.read().decode()
        connection.close()
        assert '"finish_reason": "length"' in rest
        assert rest.rstrip().endswith("data: [DONE]")
        assert process.stdout.read() == b"ended\n"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def _answers(url: str) -> bool:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_sockets() -> None:
    with bound("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        assert address(opened) == f"http://127.0.0.1:{port}"
        assert is_loopback(opened)
        opened.listen()
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 cannot be used"):
            bound("127.0.0.1", port)
    with bound("0.0.0.0", 0) as everywhere:
        assert not is_loopback(everywhere)
    with pytest.raises(UsageError, match="no address of this machine"):
        bound("no such host", 1)
