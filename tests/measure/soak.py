"""A server under clients of every kind: good, bad, huge, slow and vanishing ones, all at once.

    python -m tests.measure.soak --requests 2000 --clients 16

The server runs in a process of its own, on loopback, with the tiny pair of the tests. What must
hold: every good answer is the library's own, every bad request gets the status it deserves, none
takes longer than its time limit, no place stays taken, and the server's memory in the last quarter
is what it was in the second. Prints the figures, and exits 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from dflash_mlx.blas import prefer_openblas

prefer_openblas()

from dflash_mlx.generation import generate  # noqa: E402
from dflash_mlx.serve.prompt import prepare  # noqa: E402
from dflash_mlx.serve.wanted import Wanted  # noqa: E402
from tests.serving import agent_pair, events, in_letters  # noqa: E402

SERVER = """
from dflash_mlx.blas import prefer_openblas
prefer_openblas()
from tests.serving import agent_pair, in_letters
from dflash_mlx.engine import Engine, EngineOptions
from dflash_mlx.prefix.cache import PrefixCache, PrefixOptions
from dflash_mlx.serve.served import Limits, Served
from dflash_mlx.serve.server import bound, run
pair = agent_pair()
opened = bound("127.0.0.1", 0)
print(opened.getsockname()[1], flush=True)
prefixes = PrefixCache(pair, PrefixOptions(memory=4 << 20))
with Engine(pair, EngineOptions(places=4, queue=64), prefixes) as engine:
    run(Served(pair, engine, ("tiny",), in_letters(pair), limits=Limits(body=1 << 20)), opened)
"""
PROMPTS = ["hello", "a longer question, " * 8, "x", "tell me of seven things", "numbers 1 2 3"]
LENGTHS = (1, 5, 12, 40)
PATIENCE = 120.0  # seconds for one request; a hang takes longer
JSON = {"Content-Type": "application/json"}
GROWTH = 1.10  # of memory from the second quarter to the last


@dataclass
class Soak:
    """What was seen so far."""

    port: int
    expected: dict[tuple[str, int], str]
    kinds: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def connect(self) -> http.client.HTTPConnection:
        """A connection of its own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def post(self, path: str, body: bytes) -> tuple[int, str]:
        """Status and text of an answer."""
        connection = self.connect()
        try:
            connection.request("POST", path, body, JSON)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def refused(self) -> None:
        """Note a request for which there was no room."""
        with self.lock:
            self.kinds["refused for now"] += 1

    def check(self, holds: bool, what: str) -> None:
        """Note what does not hold."""
        if not holds:
            with self.lock:
                self.wrong.append(what)


def request_of(draw: random.Random) -> tuple[str, dict[str, Any], tuple[str, int]]:
    """A good request: where it goes, its body, and what it is about."""
    prompt, tokens, stream = draw.choice(PROMPTS), draw.choice(LENGTHS), draw.random() < 0.5
    messages = [{"role": "user", "content": prompt}]
    path, body = draw.choice(
        [
            ("/v1/chat/completions", {"messages": messages, "max_tokens": tokens}),
            ("/v1/responses", {"input": prompt, "max_output_tokens": tokens}),
            ("/v1/messages", {"messages": messages, "max_tokens": tokens}),
        ]
    )
    return path, body | {"stream": stream}, (prompt, tokens)


def text_of(path: str, stream: bool, said: str) -> str:
    """The text of an answer."""
    if not stream:
        reply = json.loads(said)
        if path == "/v1/chat/completions":
            return str(reply["choices"][0]["message"]["content"])
        if path == "/v1/responses":
            return "".join(p["text"] for item in reply["output"] for p in item["content"])
        return "".join(block["text"] for block in reply["content"])
    found = events(said)
    if path == "/v1/chat/completions":
        return "".join(c["choices"][0]["delta"].get("content", "") for c in found)
    if path == "/v1/responses":
        return "".join(e["delta"] for e in found if e["type"].endswith("output_text.delta"))
    return "".join(e["delta"].get("text", "") for e in found if e["type"] == "content_block_delta")


def good(soak: Soak, draw: random.Random) -> None:
    """Ask, and compare the answer."""
    path, body, about = request_of(draw)
    status, said = soak.post(path, json.dumps(body).encode())
    if status == 429:
        soak.refused()
        return
    text = text_of(path, body["stream"], said) if status == 200 else said
    soak.check(text == soak.expected[about], f"{path} {about}: {status} {text[:200]!r}")


def bad(soak: Soak, draw: random.Random) -> None:
    """Ask for what cannot be."""
    path, body, _ = request_of(draw)
    wrong = [
        (json.dumps(body | {"frobnicate": 1}).encode(), 400),
        (json.dumps(body | {"top_p": 7}).encode(), 400),
        (json.dumps(body | {"model": "gpt-5"}).encode(), 404),
        (json.dumps(body).encode()[:-5], 400),
        (b"\xff\xfe", 400),
        (b"[" * 3000, 400),
    ]
    sent, deserved = draw.choice(wrong)
    status, said = soak.post(path, sent)
    soak.check(status == deserved, f"{sent[:60]!r} got {status}, not {deserved}: {said[:200]}")


def huge(soak: Soak, draw: random.Random) -> None:
    """Send more than a context or a request holds."""
    size, deserved = draw.choice([(5_000, 400), (900_000, 400), (1_500_000, 413)])
    body = {"messages": [{"role": "user", "content": "x" * size}], "max_tokens": 4}
    try:
        status, said = soak.post("/v1/chat/completions", json.dumps(body).encode())
    except (BrokenPipeError, ConnectionResetError):
        status, said = 413, ""  # it closed while the rest was still being sent
    soak.check(status == deserved, f"{size} characters got {status}: {said[:200]}")


def slow(soak: Soak, draw: random.Random) -> None:
    """Send and read in small pieces."""
    path, body, about = request_of(draw)
    sent = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(sent)}\r\nConnection: close\r\n\r\n"
    data = head.encode() + sent
    with socket.create_connection(("127.0.0.1", soak.port), timeout=PATIENCE) as wire:
        for start in range(0, len(data), 64):
            wire.sendall(data[start : start + 64])
            time.sleep(draw.random() * 0.02)
        response = http.client.HTTPResponse(wire)
        response.begin()
        pieces = []
        while piece := response.read(50):
            pieces.append(piece)
            time.sleep(0.001)
    if response.status == 429:
        soak.refused()
        return
    said = b"".join(pieces).decode()
    text = text_of(path, body["stream"], said) if response.status == 200 else said
    soak.check(text == soak.expected[about], f"slowly, {path} {about}: {text[:200]!r}")


def vanishing(soak: Soak, draw: random.Random) -> None:
    """Ask for much and leave: before the end of the request, before the answer, or in it."""
    path, body, _ = request_of(draw)
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    sent = json.dumps(body | {limit: 1500}).encode()
    connection = soak.connect()
    try:
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(sent)))
        how = draw.randrange(3)
        connection.endheaders(sent[: len(sent) // 2] if how == 0 else sent)
        if how == 2 and body["stream"]:
            connection.getresponse().read(200)
        else:
            time.sleep(draw.random() * 0.3)
    finally:
        connection.close()


KINDS: list[tuple[Callable[[Soak, random.Random], None], int]] = [
    (good, 10),
    (bad, 4),
    (huge, 1),
    (slow, 2),
    (vanishing, 3),
]


def one(soak: Soak, number: int) -> None:
    """The request of this number."""
    draw = random.Random(number)
    kinds, weights = zip(*KINDS, strict=True)
    kind = draw.choices(kinds, weights)[0]
    began = time.perf_counter()
    try:
        kind(soak, draw)
    except Exception as error:
        soak.check(False, f"{kind.__name__} {number}: {error!r}")
    with soak.lock:
        soak.kinds[kind.__name__] += 1
        soak.seconds.append(time.perf_counter() - began)


def memory(pid: int) -> float:
    """MiB that a process has in memory."""
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True)
    return int(shown.stdout) / 1024


def figure(soak: Soak, name: str) -> float:
    """A figure of the server."""
    connection = soak.connect()
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(next(x for x in text.splitlines() if x.startswith(f"{name} ")).split()[1])


def answers() -> dict[tuple[str, int], str]:
    """What the library itself says to every good request."""
    pair = agent_pair()
    found = {}
    for prompt in PROMPTS:
        for tokens in LENGTHS:
            options = in_letters(pair, tokens)
            messages = [{"role": "user", "content": prompt}]
            ids = prepare(pair, Wanted(options, messages=messages)).ids
            found[prompt, tokens] = generate(pair, ids, options)
    return found


def run(soak: Soak, pid: int, requests: int, clients: int, seconds: float) -> list[float]:
    """All requests; memory after every twentieth of them."""
    rows, began = [], time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        step = max(1, requests // 20)
        for first in range(0, requests, step):
            list(pool.map(lambda n: one(soak, n), range(first, min(first + step, requests))))
            rows.append(memory(pid))
            done = min(first + step, requests)
            took = time.perf_counter() - began
            print(f"{done:>6} requests {took:>6.0f} s {rows[-1]:>7.1f} MiB", flush=True)
            if took > seconds:
                print(f"stopped after {seconds:g} s")
                break
    return rows


def report(soak: Soak, rows: list[float]) -> bool:
    """Print the figures; whether all holds."""
    for _ in range(200):
        if figure(soak, "dflash_running") == figure(soak, "dflash_waiting") == 0:
            break
        time.sleep(0.1)
    taken = figure(soak, "dflash_running") + figure(soak, "dflash_waiting")
    quarter = max(1, len(rows) // 4)
    early, late = statistics.mean(rows[quarter : 2 * quarter]), statistics.mean(rows[-quarter:])
    soak.check(taken == 0, f"{taken:g} places are still taken")
    soak.check(late < early * GROWTH, f"memory grew from {early:.1f} to {late:.1f} MiB")
    names = ("finished", "cancelled", "failed", "refused", "tokens")
    print({name: int(figure(soak, f"dflash_{name}_total")) for name in names})
    print(dict(soak.kinds))
    print(f"memory {early:.1f} MiB in the second quarter, {late:.1f} in the last")
    print(
        f"longest request {max(soak.seconds):.1f} s, median {statistics.median(soak.seconds):.2f}"
    )
    for line in soak.wrong[:20]:
        print("WRONG", line)
    print(f"{len(soak.wrong)} wrong")
    return not soak.wrong


def main() -> None:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1500)
    given = parser.parse_args()
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        soak = Soak(int(process.stdout.readline()), answers())
        while not _listens(soak):
            time.sleep(0.05)
        rows = run(soak, process.pid, given.requests, given.clients, given.seconds)
        fine = report(soak, rows)
        process.terminate()
        ended = process.wait(60)
        print(f"SIGTERM ended it with {ended}")
    finally:
        process.kill()
    sys.exit(0 if fine and ended == 0 else 1)


def _listens(soak: Soak) -> bool:
    try:
        figure(soak, "dflash_running")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
