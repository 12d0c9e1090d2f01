"""The command: what it prints for clients, what it refuses, and one run of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dflash_mlx.cli import app
from dflash_mlx.cli import serve as module
from dflash_mlx.cli.serve_log import sentence
from dflash_mlx.serve import server as server_module
from dflash_mlx.serve.clients import CLIENTS
from dflash_mlx.serve.served import Line, Served

from .serving import agent_pair


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["serve", *arguments])


@pytest.mark.parametrize("name", CLIENTS)
def test_what_clients_are_told(name: str) -> None:
    shown = run("-m", "Qwen3-4B", "--port", "9001", "--print-env", name, "--api-key", "k1")
    assert shown.exit_code == 0
    assert "127.0.0.1:9001" in shown.stdout
    assert "k1" in shown.stdout
    assert "Qwen3-4B" in shown.stdout or name in ("openai", "open-webui")


def test_a_quantised_copy_goes_by_its_short_name() -> None:
    shown = run("-m", "mlx-community/Qwen3-4B-4bit", "--host", "0.0.0.0", "--print-env", "aider")
    assert "openai/Qwen3-4B\n" in shown.stdout
    assert "http://127.0.0.1:8080/v1" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "lets other machines ask; give --api-key"),
        (["--api-key", ""], "an API key is empty"),
        (["--api-key", "clé"], "an API key is empty or has characters"),
        (["--api-key-file", "/nowhere"], "/nowhere cannot be read"),
        (["--max-body", "0"], "--max-body is 0"),
        (["--cache-memory", "-1"], "--cache-memory is -1"),
        (["--cache-memory", "0", "--cache-dir", "x"], "--cache-dir needs memory"),
        (["--host", "no such host"], "is no address of this machine"),
    ],
)
def test_refused_before_anything_is_loaded(arguments: list[str], said: str) -> None:
    result = run("-m", "no-such-model", "--port", "0", *arguments)
    assert result.exit_code == 1
    assert said in result.output


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Served]:
    """What would have been served."""
    found: list[Served] = []
    monkeypatch.setattr(module, "_load", lambda model, work, *_: _limited(work))
    monkeypatch.setattr(server_module, "run", lambda served, opened: found.append(served))
    return found


def _limited(work: Any) -> Any:
    pair = agent_pair()
    work.limit(pair)
    return pair


def test_options_become_a_server(started: list[Served], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n\ntwo\n")
    result = run(
        *("--port", "0", "--json", "--api-key-file", str(keys), "--alias", "gpt-x"),
        *("--max-context", "128", "--max-tokens", "9", "--temperature", "0.5", "--seed", "3"),
        *("--cache-memory", "0.5", "--cache-dir", str(tmp_path / "kept"), "--memory", "1"),
        *("--no-think", "--max-body", "2", "--allow-host", "Box", "--places", "2"),
    )
    assert result.exit_code == 0, result.output
    (served,) = started
    assert served.access.keys == ("one", "two")
    assert served.access.hosts == ("127.0.0.1", "localhost", "[::1]", "127.0.0.1", "box")
    assert "gpt-x" in served.names
    assert (served.pair.max_context, served.defaults.max_tokens, served.defaults.seed) == (
        128,
        9,
        3,
    )
    assert served.defaults.sampling.temperature == 0.5
    assert served.think is False
    assert served.limits.body == 2 << 20
    assert served.engine.options.places == 2
    assert served.engine.options.memory == 1 << 30
    assert served.prefixes is not None
    assert served.prefixes.options.memory == 1 << 29
    assert served.prefixes.options.folder == tmp_path / "kept"
    first, last = (json.loads(line) for line in result.stdout.splitlines())
    assert first["event"] == "start"
    assert first["url"].startswith("http://127.0.0.1:")
    assert last["event"] == "end"


def test_elsewhere_with_a_key_by_any_name(started: list[Served]) -> None:
    where = ("--port", "0", "--host", "0.0.0.0", "--api-key", "k")
    result = run(*where, "--quiet", "--cache-memory", "0")
    assert result.exit_code == 0, result.output
    assert started[0].prefixes is None
    assert started[0].access.hosts is None
    assert "serving smollm2-135m" in result.stderr


def test_a_context_that_is_larger_than_the_models(started: list[Served]) -> None:
    result = run("--port", "0", "--max-context", "99999")
    assert result.exit_code == 1
    assert "--max-context is 99999, expected 2 to 2048" in result.output


def test_a_line_of_the_log() -> None:
    assert sentence(Line("GET", "/health", 200, 0.5)) == "200 GET /health 0.50 s"
    answer: dict[str, object] = {
        "prompt_tokens": 10,
        "cached_tokens": 4,
        "generated_tokens": 20,
        "decode_tok_s": 30.5,
        "tokens_per_round": 2.5,
    }
    assert sentence(Line("POST", "/v1/x", 200, 2, answer)) == (
        "200 POST /v1/x 2.00 s, 10 prompt tokens (4 cached), 20 tokens at 30.5 tokens/s, "
        "2.5 a round"
    )
