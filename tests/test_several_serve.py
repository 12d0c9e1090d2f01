"""`dflash-mlx serve` over two processes: answers, a signal, a process that dies."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dflash_mlx.cli import app

from .convert_cases import DRAFT, TALKING, write_draft, write_talking_target
from .test_several import COMMAND, ROOT, side_by_side, started

MINUTES = 240  # seconds after which a test fails instead of hanging
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
ASKED: list[dict[str, Any]] = [
    {"max_tokens": 9},
    {"max_tokens": 12, "temperature": 0.8, "seed": 3, "logprobs": True, "top_logprobs": 2},
    {"max_tokens": 40, "response_format": FORMAT, "logit_bias": {"125": 20}},
]
LONG = {"max_tokens": 3900}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A server of a pair on disk, at a port that is free."""
    folder = tmp_path_factory.mktemp("pair")
    target = write_talking_target(folder / "target")
    draft = write_draft(folder / "draft", DRAFT | {"vocab_size": TALKING})
    return ["serve", "-m", str(target), "-d", str(draft), "--port", "0", "--json"]


@contextmanager
def serving(folder: Path, command: Sequence[str], count: int = 2) -> Iterator[Any]:
    """The URL of a server over so many processes, and these."""
    if count > 1:
        running = started(folder, [COMMAND, *command], [ROOT] * count)
    else:
        pipe, env = subprocess.PIPE, os.environ | {"PYTHONPATH": str(ROOT)}
        run = subprocess.Popen([COMMAND, *command], stdout=pipe, stderr=pipe, text=True, env=env)
        running = [run]
    try:
        assert running[0].stdout is not None
        line = running[0].stdout.readline()
        assert line, running[0].communicate()
        url = json.loads(line)["url"]
        _wait_until(lambda: _listens(url.removesuffix("/v1")))
        yield url, running
    finally:
        for each in running:
            each.kill()
            each.communicate()


def _listens(url: str) -> bool:
    """It says where it is just before it listens."""
    try:
        with urllib.request.urlopen(f"{url}/health"):
            return True
    except OSError:
        return False


def _tokens(url: str) -> float:
    """So many it has generated."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics") as reply:
        lines = dict(line.rsplit(b" ", 1) for line in reply.read().splitlines())
    return float(lines[b"dflash_tokens_total"])


def _wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + MINUTES
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def post(url: str, more: dict[str, Any]) -> Any:
    body = {"messages": [{"role": "user", "content": "hello"}], **more}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=MINUTES) as reply:
        (choice,) = json.load(reply)["choices"]
        return choice


def said(url: str) -> list[Any]:
    """The answers, asked for at the same time: texts, ends, tokens with known probabilities."""
    with ThreadPoolExecutor(len(ASKED)) as pool:
        found = list(pool.map(lambda more: post(url, more), ASKED))
    tokens = [one["token"] for one in found[1]["logprobs"]["content"]]
    return [[one["message"]["content"], one["finish_reason"]] for one in found] + [tokens]


def test_answers_are_those_of_one_process_and_a_signal_ends_all(
    command: list[str], tmp_path: Path
) -> None:
    with serving(tmp_path, command, count=1) as (url, _):
        wanted = said(url)
    with serving(tmp_path, command) as (url, running):
        assert said(url) == wanted
        with ThreadPoolExecutor(1) as pool:
            before = _tokens(url)
            answer = pool.submit(post, url, LONG)
            _wait_until(lambda: _tokens(url) > before + 3)
            running[0].send_signal(signal.SIGTERM)
            assert answer.result()["finish_reason"] == "length"
        ends = [each.wait(MINUTES) for each in running]
        outputs = [each.communicate() for each in running]
        assert ends == [0, 0], outputs
    assert json.loads(outputs[0][0].splitlines()[-1])["event"] == "end"
    assert outputs[1] == ("", "")


@pytest.mark.parametrize("busy", [True, False])
def test_a_process_that_dies_ends_the_server(
    busy: bool, command: list[str], tmp_path: Path
) -> None:
    with serving(tmp_path, command) as (url, (first, second)), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, url, LONG) if busy else None
        if answer is not None:
            _wait_until(lambda: _tokens(url) > 3)
        second.kill()
        assert first.wait(MINUTES) == 1
        if answer is not None:
            # With an error in words, or MLX waits for ever and the connection just ends.
            with pytest.raises((OSError, HTTPException)):
                answer.result()
        errors = first.communicate()[1]
    # MLX says first, and more than once, that the connection is lost.
    last = errors.splitlines()[-1]
    assert last.startswith("error: ") and "a part of the model" in last, errors
    assert "has ended" in last and "Traceback" not in errors
    assert errors.count("error: ") == 1


def test_a_folder_for_prefixes_is_refused_by_all(command: list[str], tmp_path: Path) -> None:
    run = [COMMAND, *command, "--cache-dir", str(tmp_path / "kept")]
    (one, _, errors), (two, *nothing) = side_by_side(tmp_path, run, [ROOT, ROOT])
    assert (one, two, nothing) == (1, 1, ["", ""])
    assert errors == (
        "error: --cache-dir needs a single process; leave it out, or start just one\n"
    )


def test_shards_need_others() -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "0", "--shard", "tensor"])
    assert result.exit_code == 1 and "this is the only one" in result.output
