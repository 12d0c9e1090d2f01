"""The command `bench`: what it prints and writes, how it stops, resumes and exits."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dflash_mlx import loading
from dflash_mlx.bench import run as bench_run
from dflash_mlx.bench import setting
from dflash_mlx.bench.recording import read_recording
from dflash_mlx.cli import app
from dflash_mlx.errors import PairError
from dflash_mlx.loading import Pair

from .tiny import tiny_pair

Run = Callable[..., Result]
PROMPTS = ("hello", "one two", "three")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, data: Path) -> Run:
    """Run `bench --data` with the tiny pair in place of every model."""
    return running(monkeypatch, tiny_pair(), data)


def running(monkeypatch: pytest.MonkeyPatch, pair: Pair, data: Path) -> Run:
    monkeypatch.setattr(loading, "load", lambda *args, **kwargs: pair)
    monkeypatch.setattr(setting, "COPY_BYTES", 2**16)

    def bench(*args: str) -> Result:
        return CliRunner().invoke(app, ["bench", "--data", str(data), "-n", "8", *args])

    return bench


def invoke(*args: str) -> Result:
    return CliRunner().invoke(app, ["bench", *args])


def test_the_table(run: Run) -> None:
    result = run("--block", "3,4")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert " ".join(lines[0].split()) == "set arm tok/s speed-up (95 %) tok/round same right"
    assert lines[1].strip() == "smollm2-135m"
    assert [line.split()[1:3] for line in lines[3:5]] == [["dflash", "3"], ["dflash", "4"]]
    assert all("3/3" in line for line in lines[3:5])
    assert "draft " in result.stdout
    assert result.stderr == ""


def test_the_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    result = run("--json", str(path), "--baseline", "plain", "--baseline", "mlx-lm")
    assert result.exit_code == 0, result.output
    content = json.loads(path.read_text())
    assert (content["format"], content["version"]) == ("dflash-mlx bench", 1)
    assert content["whole"]
    assert [arm["name"] for arm in content["pairs"][0]["arms"]] == ["plain", "mlx-lm", "dflash 4"]
    assert len(content["answers"]) == 9
    assert content["sets"][0]["problems"] == 3
    assert content["splits"][0].keys() >= {"draft", "verify", "accept", "commit", "host"}
    assert read_recording(path).as_dict() == read_recording(path).as_dict()
    assert json.loads(json.dumps(read_recording(path).as_dict())) == content


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C while a prompt is being answered."""
    real, calls = bench_run.ask_all, [0]

    def ask_all(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(bench_run, "ask_all", ask_all)


def test_ctrl_c_keeps_what_was_measured_and_resume_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    with monkeypatch.context() as patched:
        interrupt(patched, after=2)
        result = run("--json", str(path))
    assert result.exit_code == 130
    assert "stopped early" in result.stdout
    before = read_recording(path)
    assert not before.whole
    assert [a.problem for a in before.answers if a.arm == "plain"] == [
        a.problem for a in before.answers if a.arm == "dflash 4"
    ]
    assert len(before.answers) == 4

    result = run("--resume", str(path))
    assert result.exit_code == 0, result.output
    after = read_recording(path)
    assert after.whole
    assert after.answers[:4] == before.answers
    assert len({a.key for a in after.answers}) == 3
    assert run("--resume", str(path)).exit_code == 0
    assert read_recording(path).answers == after.answers
    assert list(tmp_path.glob(".*")) == []


def test_ctrl_c_before_anything(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, after=0)
    result = run()
    assert result.exit_code == 130
    assert result.stdout == "stopped before anything was measured\n"


def test_other_settings_are_not_gone_on_with(run: Run, tmp_path: Path, data: Path) -> None:
    path = tmp_path / "run.json"
    assert run("--json", str(path)).exit_code == 0
    before = path.read_bytes()
    result = run("--resume", str(path), "--block", "3")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the run to resume has settings blocks")
    data.write_text(json.dumps({"prompt": "another"}) + "\n")
    result = run("--resume", str(path))
    assert result.exit_code == 1
    assert "the run to resume has sets 0." in result.stderr
    assert result.stderr.count("\n") == 1
    assert path.read_bytes() == before


def test_another_machine_s_run_is_not_gone_on_with(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert run("--json", str(path)).exit_code == 0
    path.write_text(path.read_text().replace('"system": "', '"system": "Other'))
    result = run("--resume", str(path))
    assert result.exit_code == 1
    assert "was measured with system Other" in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no valid JSON"),
        ("{}", "is no benchmark's file"),
        ('{"format": "dflash-mlx bench", "version": 9}', "format version 9"),
        ('{"format": "dflash-mlx bench", "version": 1, "answers": [1]}', "damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    result = invoke("compare", str(path), str(path))
    assert result.exit_code == 1
    assert message in result.stderr


def test_texts_that_differ_are_told(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.setattr(bench_run, "judge", lambda *args: ("bug", "token 3: 'x' for 'y'"))
    result = running(monkeypatch, tiny_pair(), data)()
    assert result.exit_code == 1
    assert "differs" in result.stdout
    told = " ".join(result.stdout.split())
    assert re.search(r"3 texts differ beyond ties: prompts/\d, token 3: 'x' for 'y'", told)


def test_reports(run: Run, tmp_path: Path) -> None:
    page, table = tmp_path / "run.html", tmp_path / "run.md"
    result = run("--html", str(page), "--markdown", str(table), "--repeat", "2")
    assert result.exit_code == 0, result.output
    html, markdown = page.read_text(), table.read_text()
    assert html.count("<svg") == 4
    assert "http" not in html
    assert "<script" not in html
    rows = [line for line in markdown.splitlines() if line.startswith("| smollm2-135m")]
    assert len(rows) == 2
    assert all(row.count("|") == 14 for row in rows)


def test_compare(run: Run, tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    assert run("--json", str(old)).exit_code == 0
    content = json.loads(old.read_text())
    for answer in content["answers"]:
        for turn in answer["turns"]:
            turn["decode_s"] /= 2
    new.write_text(json.dumps(content))
    result = invoke("compare", str(old), str(new))
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if "/3" in line]
    assert [row[-1] for row in rows] == ["3/3", "3/3"]
    assert all("2.00" in row for row in rows)
    changes = json.loads(invoke("compare", str(old), str(new), "--json").stdout)["changes"]
    assert changes[1]["decode"] == {"value": 2.0, "low": 2.0, "high": 2.0, "n": 3}
    assert changes[1]["tau"]["value"] == 1.0


def test_runs_of_other_prompts_are_not_compared(run: Run, tmp_path: Path, data: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    assert run("--json", str(old)).exit_code == 0
    data.write_text(json.dumps({"prompt": "another"}) + "\n")
    assert run("--json", str(new)).exit_code == 0
    result = invoke("compare", str(old), str(new))
    assert result.exit_code == 1
    assert "share no arm on the same problems" in result.stderr


def test_context(run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dflash_mlx.bench import context

    monkeypatch.setattr(context, "SHORTEST", 128)
    path, page = tmp_path / "run.json", tmp_path / "run.html"
    out = ["--json", str(path), "--html", str(page)]
    result = invoke("context", "--data", str(data), "-n", "6", "--max-context", "300", *out)
    assert result.exit_code == 0, result.output
    found = read_recording(path)
    assert [each["name"] for each in found.sets] == ["128 tokens", "256 tokens"]
    for answer in found.answers:
        size = int(answer.dataset.split()[0])
        assert size - 3 <= answer.turns[0].prompt_tokens <= size
    assert len(found.answers) == 2 * 2 * 2
    assert {a.verdict for a in found.answers if a.arm != "plain"} == {"identical"}
    assert page.read_text().count("<svg") == 1
    short = invoke("context", "--data", str(data), "--max-context", "100")
    assert short.exit_code == 1
    assert "the shortest of this benchmark has" in short.stderr


def test_several_drafts_are_several_pairs(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    result = run("-m", "x", "-d", "one", "-d", "two", "--json", str(path))
    assert result.exit_code == 0, result.output
    assert [pair["name"] for pair in read_recording(path).pairs] == ["x + one", "x + two"]
    assert len(read_recording(path).answers) == 12


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "name a set of prompts"),
        (("gsm8k", "--block", "1"), "is not a list of numbers from 2 to 64"),
        (("gsm8k", "--block", "a"), "is not a list of numbers"),
        (("gsm8k", "--baseline", "vllm"), "is none of plain, mlx-lm"),
        (("gsm8k", "-n", "1"), "--max-tokens needs 2 at least"),
        (("gsm8k", "--repeat", "0"), "--repeat needs 1 at least"),
        (("gsm8k", "--limit", "-1"), "cannot be negative"),
        (("gsm8k", "-m", "a", "-m", "b", "-m", "c", "-d", "d", "-d", "e"), "3 models and 2 drafts"),
        (("gsm8k", "-m", "a", "-m", "a"), "named twice"),
        (("gsm8k", "--json", "a", "--resume", "b"), "leave out --json"),
        (("gsm8k", "--html", "/nowhere/a.html"), "/nowhere is no folder"),
        (("gsm8k", "--concurrency", "2"), "needs --endpoint"),
        (("gsm8k", "--endpoint", "http://x/v1"), "needs --endpoint-model"),
    ],
)
def test_what_makes_no_sense_is_refused(args: tuple[str, ...], message: str) -> None:
    result = invoke("run", *args)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_pair_that_does_not_load_leaves_no_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Pair:
        raise PairError("no draft is known")

    monkeypatch.setattr(loading, "load", refuse)
    path = tmp_path / "run.json"
    result = run("--json", str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: no draft is known\n"
    assert not path.exists()


def test_an_unknown_set_is_one_line() -> None:
    result = invoke("gsm9k")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_help_shows_sets_and_commands() -> None:
    text = invoke("--help").stdout
    for word in ("gsm8k", "run", "context", "compare", "kernels", "Examples:"):
        assert word in text
    assert "--concurrency" in invoke("run", "--help").stdout
    assert invoke("kernels", "--help").exit_code == 0
