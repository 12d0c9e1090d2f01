"""Servers as the benchmark sees them: a scripted one, and mlx-lm's own in a process beside."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from typer.testing import CliRunner, Result

from dflash_mlx.bench import setting
from dflash_mlx.bench.endpoint import Endpoint, load_of, run_endpoint
from dflash_mlx.bench.recording import read_recording
from dflash_mlx.bench.run import Plan
from dflash_mlx.cli import app
from dflash_mlx.errors import DownloadError, UsageError

from .test_bench_run import problems
from .tiny import _language_model, tokenizer

PLAN = Plan(max_tokens=6)


@dataclass
class Script:
    """What the server says, and what it was asked."""

    pieces: tuple[str, ...] = ("one", " two", " three")
    usage: bool = True
    status: int = 200
    broken: bool = False
    pause: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    busy: int = 0
    most: int = 0


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def endpoint(script: Script) -> Iterator[Endpoint]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                script.asked.append(body)
                script.busy += 1
                script.most = max(script.most, script.busy)
            time.sleep(script.pause)
            self.send_response(script.status)
            self.end_headers()
            if script.status == 200:
                self._stream()
            else:
                self.wfile.write(b'{"error": "no such model"}')
            with lock:
                script.busy -= 1

        def _stream(self) -> None:
            self.wfile.write(b": keepalive\n\n")
            for piece in script.pieces:
                self._event({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
                if script.broken:
                    self.wfile.write(b"data: {broken\n\n")
                    return
            self._event({"choices": [{"delta": {}, "finish_reason": "length"}]})
            if script.usage:
                usage = {"prompt_tokens": 9, "completion_tokens": 6}
                self._event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, event: dict[str, Any]) -> None:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "some-model")
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_answer(endpoint: Endpoint, script: Script) -> None:
    (found,) = run_endpoint(endpoint, problems(("hello", "and then?")), PLAN, 1)
    assert found.pair == "some-model"
    assert [t.text for t in found.turns] == ["one two three"] * 2
    assert [(t.prompt_tokens, t.tokens, t.finish_reason) for t in found.turns] == [
        (9, 6, "length")
    ] * 2
    assert all(t.ttft_s > 0 and t.decode_s > 0 for t in found.turns)
    assert script.asked[0]["max_tokens"] == 6
    assert [m["content"] for m in script.asked[1]["messages"]] == [
        "hello",
        "one two three",
        "and then?",
    ]
    assert load_of([found], 1, 4.0).tok_s == 3.0


def test_events_stand_for_tokens_that_are_not_counted(endpoint: Endpoint, script: Script) -> None:
    script.usage = False
    (found,) = run_endpoint(endpoint, problems(("hello",)), PLAN, 1)
    assert found.turns[0].tokens == 3


def test_requests_run_at_once(endpoint: Endpoint, script: Script) -> None:
    script.pause = 0.1
    asked = problems(*[(str(i),) for i in range(6)])
    answers = list(run_endpoint(endpoint, asked, PLAN, 3))
    assert sorted(a.problem for a in answers) == [str(i) for i in range(6)]
    assert script.most == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": 404}, "answers 404"),
        ({"broken": True}, "broke off"),
    ],
)
def test_requests_that_fail_say_why(
    endpoint: Endpoint, script: Script, change: dict[str, Any], message: str
) -> None:
    for name, value in change.items():
        setattr(script, name, value)
    (found,) = run_endpoint(endpoint, problems(("hello",)), PLAN, 1)
    assert found.turns == ()
    assert found.failed is not None
    assert message in found.failed


def test_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = Endpoint(f"http://127.0.0.1:{free.getsockname()[1]}/v1", "x")
        with pytest.raises(DownloadError, match="cannot be reached"):
            list(nowhere.stream([], PLAN, 0))
    with pytest.raises(UsageError, match="is no address"):
        Endpoint("localhost:8080", "x")


def bench(monkeypatch: pytest.MonkeyPatch, url: str, data: Path, *args: str) -> Result:
    monkeypatch.setattr(setting, "COPY_BYTES", 2**16)
    data.write_text('{"prompt": "hello"}\n{"prompt": "you"}\n{"prompt": "there"}\n')
    command = ["bench", "--data", str(data), "--endpoint", url, *args]
    return CliRunner().invoke(app, command)


def test_the_command(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    options = ("--endpoint-model", "some-model", "--concurrency", "2", "--json", str(path))
    result = bench(monkeypatch, endpoint.url, tmp_path / "data.jsonl", *options)
    assert result.exit_code == 0, result.output
    assert "tokens/s in all at 2 requests at once (18 tokens in " in result.stdout
    found = read_recording(path)
    assert found.kind == "endpoint"
    assert len(found.answers) == 3


@pytest.mark.parametrize(
    "option", [["-m", "x"], ["--block", "4"], ["--baseline", "plain"], ["--top-k", "4"]]
)
def test_what_does_not_reach_a_server_is_refused(
    option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.jsonl"
    result = bench(monkeypatch, "http://x/v1", data, "--endpoint-model", "x", *option)
    assert result.exit_code == 2
    assert "leave out" in result.stderr


def write_model(folder: Path) -> None:
    """The tiny target as a folder that mlx-lm loads."""
    model, words = _language_model(), tokenizer()
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    args = vars(model.args)
    config = {k: v for k, v in args.items() if v is not None and not k.startswith("_")}
    (folder / "config.json").write_text(json.dumps(config))
    words._tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_mlx_lm_s_own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", port]
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/v1/models", server)
        path = tmp_path / "run.json"
        options = ("--endpoint-model", str(folder), "--concurrency", "2", "--json", str(path))
        url = f"http://127.0.0.1:{port}/v1"
        result = bench(monkeypatch, url, tmp_path / "data.jsonl", "-n", "8", *options)
        assert result.exit_code == 0, result.output
        found = read_recording(path)
        assert [a.failed for a in found.answers] == [None] * 3
        assert all(1 <= a.turns[0].tokens <= 8 for a in found.answers)
        assert all(a.turns[0].prompt_tokens > 0 for a in found.answers)
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert server.poll() is None, "the server has ended"
        try:
            urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server does not answer")
