import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from typer.testing import CliRunner, Result

import dflash_mlx
from dflash_mlx import loading
from dflash_mlx.cli import app
from dflash_mlx.cli.options import ModelOptions, SamplingOptions, flags
from dflash_mlx.conversation import Conversation
from dflash_mlx.errors import DFlashError
from dflash_mlx.loading import Pair
from dflash_mlx.options import Options
from dflash_mlx.ranks import ALONE
from dflash_mlx.sampling import Sampling

from .tiny import PLAIN, tiny_pair

KEYS = [
    "text",
    "thinking",
    "token_ids",
    "prompt_tokens",
    "cached_tokens",
    "generated_tokens",
    "rounds",
    "drafted",
    "accepted",
    "tokens_per_round",
    "acceptance_histogram",
    "widths",
    "lookup",
    "ttft_s",
    "prefill_tok_s",
    "decode_tok_s",
    "finish_reason",
    "model",
    "draft",
    "kernels",
    "seed",
    "versions",
]

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line with the tiny pair in place of every model."""
    return running(monkeypatch, tiny_pair())


def running(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> Run:
    monkeypatch.setattr(loading, "load", lambda *args, **kwargs: pair)
    return command


def command(*args: str, stdin: str | bytes = b"") -> Result:
    return CliRunner().invoke(app, ["chat", "-n", "12", *args], input=stdin)


def answer(text: str, **sampling: Any) -> str:
    """What the library answers."""
    options = Options(max_tokens=12, sampling=Sampling(**sampling))
    return "".join(p.text for p in Conversation(tiny_pair()).ask(text, options))


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"dflash-mlx {dflash_mlx.__version__}\n"


@pytest.mark.parametrize("args", [["-h"], ["--help"], ["chat", "-h"]])
def test_help(args: list[str]) -> None:
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0
    assert "chat" in result.stdout


def test_text_on_stdout_and_figures_on_stderr(run: Run) -> None:
    result = run("-p", "hello")
    assert result.exit_code == 0
    assert result.stdout.rstrip("\n") == answer("hello").rstrip("\n")
    assert result.stdout.endswith("\n")
    assert "tokens/s" in result.stderr
    assert "cut at the token limit" in result.stderr
    assert "\x1b" not in result.stderr  # no colours outside a terminal


def test_quiet_leaves_only_the_answer(run: Run) -> None:
    result = run("-p", "hello", "--quiet")
    assert result.stdout.rstrip("\n") == answer("hello").rstrip("\n")
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("args", "stdin", "prompt"),
    [
        ([], "hello\n", "hello"),
        ([], "\ufeffhello", "hello"),
        (["-p", "hello"], "", "hello"),
        (["-p", "explain"], "one\ntwo\n", "explain\n\none\ntwo"),
        ([], "ünïcode 🙂", "ünïcode 🙂"),
    ],
)
def test_where_the_prompt_comes_from(run: Run, args: list[str], stdin: str, prompt: str) -> None:
    result = run("--json", *args, stdin=stdin)
    record = json.loads(result.stdout)
    assert record["text"] == answer(prompt)
    assert record["prompt_tokens"] == len(f"{prompt}".encode()) + 3


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        ([], b"", "the prompt is empty"),
        ([], b" \n\n", "the prompt is empty"),
        (["-p", ""], b"", "the prompt is empty"),
        ([], b"caf\xe9", "byte 0xe9 at offset 3"),
        (["-p", "caf\udce9"], b"", "not UTF-8 at character 3"),
        (["-p", "x", "-s", "caf\udce9"], b"", "not valid UTF-8"),
        (["-p", "x" * 3000], b"", "context holds 2048"),
        (["-p", "x", "--block", "1"], b"", "block is 1"),
        (["-p", "x", "--top-p", "2"], b"", "top_p is 2.0"),
        (["-p", "x", "--logit-bias", "300=1"], b"", "logit_bias names token 300"),
        (["-p", "x", "--stop", ""], b"", "stop text is empty"),
    ],
)
def test_mistakes_are_one_line(run: Run, args: list[str], stdin: bytes, message: str) -> None:
    result = run(*args, stdin=stdin)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_a_missing_model_is_one_line() -> None:
    result = command("-m", "no-such-model", "-p", "x")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no model 'no-such-model'")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--nonsense"], "No such option"),
        (["--bits", "5"], "--bits"),
        (["--dtype", "int8"], "--dtype"),
        (["--max-tokens", "many"], "--max-tokens"),
        (["--logit-bias", "x=1"], "ID=VALUE"),
        (["--draft", "a/b", "--no-draft"], "exclude each other"),
        (["--draft-bits", "4", "--no-draft"], "exclude each other"),
        (["--raw", "--system", "s"], "chat template"),
        (["--raw", "--no-think"], "chat template"),
        (["--json", "--show-drafts"], "exclude each other"),
        (["unexpected"], "unexpected"),
    ],
)
def test_wrong_usage_exits_2(run: Run, args: list[str], message: str) -> None:
    result = run(*args, stdin="hello")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", "").split())


def test_json(run: Run) -> None:
    result = run("-p", "hello", "--json")
    assert result.stdout.count("\n") == 1
    record = json.loads(result.stdout)
    assert list(record) == KEYS
    assert record["text"] == answer("hello")
    assert record["thinking"] == ""
    assert len(record["token_ids"]) == record["generated_tokens"] == 12
    assert record["finish_reason"] == "length"
    assert (record["model"], record["draft"]) == ("tiny", "tiny-dflash")
    assert record["seed"] is None
    assert set(record["versions"]) == {"dflash-mlx", "mlx", "mlx-lm", "python"}
    assert sum(record["acceptance_histogram"]) == record["rounds"] > 0
    assert "tokens/s" in result.stderr


def test_a_seed_is_drawn_and_reproduces(run: Run) -> None:
    first = json.loads(run("-p", "hello", "--json", "-t", "1").stdout)
    second = json.loads(run("-p", "hello", "--json", "-t", "1").stdout)
    again = json.loads(run("-p", "hello", "--json", "-t", "1", "--seed", str(first["seed"])).stdout)
    assert first["seed"] != second["seed"]
    assert again["token_ids"] == first["token_ids"]


def test_thinking_goes_to_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    # The template opens the block and the model never closes it.
    pair = tiny_pair(PLAIN.replace("<|assistant|>{% endif", "<think>{% endif"), thinking=True)
    run = running(monkeypatch, pair)
    result = run("-p", "hello", "--block", "4")
    assert result.stdout == ""
    thought, figures = result.stderr.rstrip().rsplit("\n", 1)
    assert thought and "tokens/round" in figures
    record = json.loads(run("-p", "hello", "--json").stdout)
    assert record["text"] == ""
    assert record["thinking"]


def test_raw_sends_the_prompt_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    run = running(monkeypatch, tiny_pair(template=None))
    record = json.loads(run("--raw", "--json", stdin="hello\n").stdout)
    assert record["prompt_tokens"] == len("hello\n")
    assert "use --raw" in run(stdin="hello").stderr


def test_options_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load(*args: Any, **kwargs: Any) -> Pair:
        seen.update(kwargs, args=args)
        return tiny_pair()

    monkeypatch.setattr(loading, "load", load)
    args = "-m a/b -d c/d --bits 4 --draft-bits 8 --dtype bfloat16 --revision r --draft-revision s"
    args += " --kv-bits 8 --draft-kv-bits 4 --kv-group-size 32 --draft-window 512 --draft-sink 2"
    assert command(*args.split(), "-q", "-p", "x").exit_code == 0
    assert seen == {
        "args": ("a/b", "c/d"),
        "speculate": True,
        "kv_bits": 8,
        "draft_kv_bits": 4,
        "kv_group_size": 32,
        "draft_window": 512,
        "draft_sink": 2,
        "bits": 4,
        "draft_bits": 8,
        "dtype": "bfloat16",
        "kernels": "auto",
        "revision": "r",
        "draft_revision": "s",
        "quiet": True,
        "ranks": ALONE,
    }


def test_logit_bias_and_stop(run: Run) -> None:
    z = tiny_pair().tokenizer.encode("z", add_special_tokens=False)[0]
    result = run("-p", "hello", "--logit-bias", f"{z}=1000", "-q")
    assert result.stdout == "z" * 12 + "\n"
    record = json.loads(
        run("-p", "x", "--logit-bias", f"{z}=1000", "--stop", "zzz", "--json").stdout
    )
    assert (record["text"], record["finish_reason"]) == ("", "stop")


def test_show_drafts_changes_no_text(run: Run) -> None:
    assert run("-p", "hello", "--show-drafts").stdout == run("-p", "hello").stdout


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> Pair:
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load", load)
    result = command("-p", "hello")
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


def test_an_error_of_several_lines_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> Pair:
        raise DFlashError("one\n  two")

    monkeypatch.setattr(loading, "load", load)
    assert command("-p", "hello").stderr == "error: one two\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> Pair:
        raise RuntimeError("bug")

    monkeypatch.setattr(loading, "load", load)
    assert isinstance(command("-p", "hello").exception, RuntimeError)


CLOSED_PIPE = """
import os, sys
from dflash_mlx.blas import prefer_openblas
prefer_openblas()
from dflash_mlx import loading
from dflash_mlx.cli import app
from tests.tiny import tiny_pair
loading.load = lambda *args, **kwargs: tiny_pair()
reading, writing = os.pipe()
os.close(reading)
os.dup2(writing, 1)
app(["chat", "-p", "hello", *sys.argv[1:]], prog_name="dflash-mlx")
"""


@pytest.mark.parametrize("args", [[], ["--json"]])
def test_a_closed_pipe_ends_quietly(args: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", CLOSED_PIPE, "-q", *args],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert result.stderr == ""
    assert result.returncode == 1


def test_flags_hand_groups_to_a_command() -> None:
    seen: list[object] = []

    def example(model: ModelOptions, sampling: SamplingOptions) -> None:
        seen.extend((model, sampling))

    flags(example)(**vars(ModelOptions(model="m")), **vars(SamplingOptions(top_k=3)))
    assert seen == [ModelOptions(model="m"), SamplingOptions(top_k=3)]


@pytest.mark.parametrize("metal", [True, False])
def test_weights_are_wired_on_metal(monkeypatch: pytest.MonkeyPatch, run: Run, metal: bool) -> None:
    limits: list[int] = []
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 99})
    monkeypatch.setattr(mx, "set_wired_limit", limits.append)
    assert run("-p", "x", "-n", "0").exit_code == 0
    assert limits == ([99] if metal else [])


@pytest.mark.slow
def test_the_embedded_model_answers() -> None:
    args = ["chat", "-p", "What is the capital of France?", "--json", "-n", "40"]
    record = json.loads(CliRunner().invoke(app, args).stdout)
    assert "Paris" in record["text"]
    assert record["finish_reason"] == "stop"
