"""The command `verify`: what it compares, what it prints, how it exits."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from typer.testing import CliRunner, Result

from dflash_mlx import loading
from dflash_mlx.cli import app
from dflash_mlx.cli.verify import BUILT_IN
from dflash_mlx.loading import Pair

from .test_verification import COUNT, PROMPT, Names, nudged, sloppy
from .tiny import tiny_pair

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `verify` with the tiny pair in place of every model."""
    return running(monkeypatch, tiny_pair())


def running(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> Run:
    monkeypatch.setattr(loading, "load", lambda *args, **kwargs: pair)

    def verify(*args: str, stdin: str = "") -> Result:
        return CliRunner().invoke(app, ["verify", "-n", "12", *args], input=stdin)

    return verify


def test_the_report(run: Run) -> None:
    result = run("some-model", "-p", "hello", "-p", "one two three " * 9, "--samples", "4")
    assert result.exit_code == 0, result.output
    head, rest = result.stdout.split("\n", 1)
    assert head == "tiny with tiny-dflash: float32, block 4, up to 12 tokens a text"
    rows = rest.splitlines()
    assert rows[1] == "greedy, against plain decoding"
    assert rows[2].split()[:4] == ["1", "identical", "12", "tokens,"]
    assert rows[2].endswith('"hello"')
    assert rows[3].endswith('"one two three one two three one two t..."')
    assert rows[5] == "sampled at temperature 1, against the target alone"
    assert rows[6] == "    seeds: 8 of 8 texts came again with the same seed"
    assert rows[7].startswith("    distribution: chi-square ")
    assert "over 88 tokens in 11 bins" in rows[7]
    assert rows[9] == "no bug: 2 of 2 greedy texts identical"
    assert result.stderr == ""


def test_json(run: Run) -> None:
    result = run("--json", "--seed", "7", "--block", "3", "-p", "hello")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert record["verdict"] == "identical"
    assert [row["verdict"] for row in record["greedy"]] == ["identical"]
    assert record["greedy"][0]["prompt"] == "hello"
    assert record["greedy"][0]["prompt_tokens"] == 8
    assert record["sampled"]["texts"] == record["sampled"]["reproduced"] == 1
    assert record["sampled"]["p_value"] is None  # 11 tokens are too few
    assert (record["model"], record["draft"], record["dtype"]) == ("tiny", "tiny-dflash", "float32")
    assert (record["block"], record["max_tokens"], record["seed"]) == (3, 12, 7)
    assert set(record["versions"]) == {"dflash-mlx", "mlx", "mlx-lm", "python"}


def test_a_bug_exits_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sloppy(monkeypatch)
    result = run("-p", "hello", "--samples", "0")
    assert result.exit_code == 1
    assert "bug at token" in result.stdout
    assert "best two" in result.stdout
    assert result.stdout.splitlines()[-1] == "BUG: 1 of 1 greedy texts"
    assert "sampled" not in result.stdout
    record = json.loads(run("-p", "hello", "--samples", "0", "--json").stdout)
    assert record["verdict"] == "bug"
    (told,) = record["greedy"][0]["divergences"]
    assert told["verdict"] == "bug"
    assert set(told["speculative"]) == {"id", "text", "logit"}


def test_a_tie_exits_0(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = nudged(1e-5)
    monkeypatch.setattr("dflash_mlx.cli.verify._encode", lambda *args: PROMPT)
    monkeypatch.setattr(Names, "has_chat_template", False, raising=False)
    result = running(monkeypatch, pair)("-n", str(COUNT), "--samples", "0", "-p", "x")
    assert result.exit_code == 0
    assert "tie at token" in result.stdout
    assert "as passes of 1 and 8 rows differ by up to" in result.stdout
    assert result.stdout.splitlines()[-1] == "no bug: 0 of 1 greedy texts identical, 1 with ties"


def test_a_seed_that_does_not_reproduce(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = iter(range(10**6))
    monkeypatch.setattr("dflash_mlx.decode.round_key", lambda *_: mx.random.key(next(keys)))
    result = run("-p", "hello")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "BUG: seeds do not reproduce"


def prompts_of(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [row["prompt"] for row in json.loads(result.stdout)["greedy"]]


def test_where_prompts_come_from(run: Run, tmp_path: Path) -> None:
    args = ["--json", "--samples", "0", "-n", "2"]
    assert prompts_of(run(*args)) == list(BUILT_IN)
    assert prompts_of(run(*args, stdin="piped\n")) == ["piped"]
    assert prompts_of(run(*args, "-p", "a", "-p", "b", stdin="piped\n")) == ["a", "b"]
    file = tmp_path / "data.jsonl"
    file.write_text('\ufeff{"prompt": "ünï", "more": 1}\n\n"two"\n')
    assert prompts_of(run(*args, "--data", str(file), stdin="piped\n")) == ["ünï", "two"]


def test_prompts_go_through_the_template(run: Run) -> None:
    args = ["--json", "--samples", "0", "-p", "abc"]
    through, raw = (json.loads(run(*args, *more).stdout) for more in ((), ("--raw",)))
    assert raw["greedy"][0]["prompt_tokens"] == 3
    assert through["greedy"][0]["prompt_tokens"] == 6


def test_without_a_template_prompts_are_sent_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    run = running(monkeypatch, tiny_pair(None))
    record = json.loads(run("--json", "--samples", "0", "-p", "abc").stdout)
    assert record["greedy"][0]["prompt_tokens"] == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--no-draft"], "verify compares with and without a draft"),
        (["-p", "a", "--data", "x"], "--prompt and --data exclude each other"),
        (["-n", "1"], "--max-tokens needs 2 at least"),
        (["--samples", "-1"], "cannot be negative"),
        (["-t", "0"], "use --samples 0"),
    ],
)
def test_options_that_are_refused(run: Run, args: list[str], message: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"caf\xe9", "cannot be read: it is not UTF-8"),
        (b"\n", "is empty"),
        (b'{"prompt": "a"}\nx', "line 2 is not valid JSON"),
        (b'{"text": "a"}', "line 1 holds no prompt"),
        (b'{"prompt": " "}', "line 1 holds no prompt"),
        (b"[1]", "line 1 holds no prompt"),
    ],
)
def test_data_that_is_refused(
    run: Run, tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "data.jsonl"
    if content is not None:
        file.write_bytes(content)
    result = run("--data", str(file))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_an_empty_prompt(run: Run) -> None:
    result = run("-p", " ")
    assert result.exit_code == 1
    assert "the prompt is empty" in result.stderr


@pytest.mark.slow
def test_the_embedded_pair() -> None:
    result = CliRunner().invoke(app, ["verify", "-n", "16", "-p", "Hello", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["verdict"] == "identical"
