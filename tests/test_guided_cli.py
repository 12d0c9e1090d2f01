"""`chat --schema` and `chat --logprobs`, and what they exclude."""

import json
from pathlib import Path
from typing import Any

import pytest

from .test_cli import Run, command, running
from .tiny import tiny_pair

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return running(monkeypatch, tiny_pair())


@pytest.mark.parametrize("by_file", [True, False])
def test_an_answer_by_a_schema(run: Run, tmp_path: Path, by_file: bool) -> None:
    text = json.dumps(SCHEMA)
    (tmp_path / "schema.json").write_text(text)
    given = str(tmp_path / "schema.json") if by_file else text
    result = run("-p", "hello", "--schema", given, "-n", "200", "-q")
    assert result.exit_code == 0, result.stderr
    assert list(json.loads(result.stdout)) == ["name"]


def test_log_probabilities_in_the_record(run: Run) -> None:
    record = json.loads(run("-p", "hello", "--json", "--logprobs", "2").stdout)
    assert [one["token"] for one in record["logprobs"]] == record["token_ids"]
    one = record["logprobs"][0]
    assert list(one) == ["token", "text", "logprob", "top"]
    assert len(one["top"]) == 2
    assert one["logprob"] == one["top"][0]["logprob"]  # greedy
    assert "logprobs" not in json.loads(run("-p", "hello", "--json").stdout)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--schema", "{"], "the schema is not valid JSON"),
        (["--schema", "no-such-file"], "the schema no-such-file cannot be read"),
        (["--schema", '{"type": "objec"}'], "Invalid type: objec"),
        (["--json", "--logprobs", "21"], "logprobs is 21, expected 0 to 20"),
    ],
)
def test_mistakes_are_one_line(run: Run, args: list[str], message: str) -> None:
    result = run("-p", "hello", *args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1 and message in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--logprobs", "1"], "--logprobs needs --json"),
    ],
)
def test_wrong_usage_exits_2(run: Run, args: list[str], message: str) -> None:
    result = run("-p", "hello", *args)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", "").split())


def test_a_schema_needs_a_prompt(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr("dflash_mlx.cli.chat.read_prompt", lambda *_, **__: None)
    result = command("--schema", "{}")
    assert result.exit_code == 2
    assert "--schema needs a prompt" in " ".join(result.stderr.replace("│", "").split())
