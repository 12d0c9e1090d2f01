"""`dflash-mlx convert` as it is typed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner, Result

from dflash_mlx.checkpoint import read_tensors
from dflash_mlx.cli import app
from dflash_mlx.cli.convert_report import lines
from dflash_mlx.loading import load

from . import convert_cases as cases
from .hub_server import HubServer

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    target, draft = cases.write_target(tmp_path / "t"), cases.write_draft(tmp_path / "d")
    return str(target), str(draft)


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["convert", *args])


def facts(*args: str) -> dict[str, Any]:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_a_pair(tmp_path: Path, folders: tuple[str, str]) -> None:
    out = tmp_path / "out"
    found = facts(folders[0], "-d", folders[1], "--bits", "4", "--group-size", "32", "-o", str(out))
    assert found["target"] == {"bits": 4, "group_size": 32, "mode": "affine"}
    # Where the target is quantised the draft is, too, in more bits.
    assert found["draft"] == {"fc": 8, "attention": 8, "mlp": 8, "group_size": 32}
    weights = [out / part / "model.safetensors" for part in ("target", "draft")]
    assert found["disk"] == {
        p.parent.name: sum(t.nbytes for t in read_tensors(p.parent).values()) for p in weights
    }
    assert load(str(out), quiet=True).draft is not None


def test_the_plain_report(tmp_path: Path, folders: tuple[str, str]) -> None:
    result = run(folders[0], "-d", folders[1], "-o", str(tmp_path / "out"), "--quiet")
    assert result.exit_code == 0
    assert "not quantised" in result.stdout
    assert "at 4096 tokens" in result.stdout
    assert result.stderr == ""


def test_a_dry_run_says_the_same_and_writes_nothing(
    tmp_path: Path, folders: tuple[str, str]
) -> None:
    args = (folders[0], "-d", folders[1], "--mode", "mxfp4", "-o", str(tmp_path / "out"))
    planned = facts(*args, "--dry-run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "t"]
    made = facts(*args)
    assert planned["exact"]
    assert (planned["disk"], planned["memory"]) == (made["disk"], made["memory"])


def test_a_dry_run_of_what_is_not_here_is_by_the_catalog(tmp_path: Path) -> None:
    found = facts("Qwen3-8B", "--bits", "4", "-o", str(tmp_path / "out"), "--dry-run")
    assert not found["exact"]
    assert 4.2 < found["disk"]["target"] / 2**30 < 4.5
    assert 1.0 < found["disk"]["draft"] / 2**30 < 1.1


def test_the_draft_alone(tmp_path: Path, folders: tuple[str, str]) -> None:
    out = str(tmp_path / "out")
    found = facts(folders[1], "--draft-only", "--draft-bits", "4", "--group-size", "32", "-o", out)
    assert found["draft"] == {"fc": 8, "attention": 4, "mlp": 4, "group_size": 32}
    assert load(folders[0], out, quiet=True, check=False).draft is not None


def test_bits_of_the_draft_can_be_declined(tmp_path: Path, folders: tuple[str, str]) -> None:
    args = (*folders[:1], "-d", folders[1], "--mode", "mxfp8", "-o", str(tmp_path / "out"))
    assert facts(*args, "--draft-bits", "16")["draft"] == {}


def test_a_float16_target_leaves_its_draft_safe(tmp_path: Path, folders: tuple[str, str]) -> None:
    out = tmp_path / "out"
    facts(folders[0], "-d", folders[1], "--dtype", "float16", "-o", str(out))
    kinds = {p: {t.dtype for t in read_tensors(out / p).values()} for p in ("target", "draft")}
    assert kinds == {"target": {mx.float16}, "draft": {mx.float32}}


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("T", "-d", "D"), 2, "Missing option '--out'"),
        (("T", "-d", "D", "-o", "T"), 1, "exists; name another folder with --out"),
        (("T", "--target-only", "-d", "D", "-o", "O"), 2, "--target-only converts no draft"),
        (("T", "--target-only", "--draft-only", "-o", "O"), 2, "exclude each other"),
        (("T", "--target-only", "--draft-bits", "4", "-o", "O"), 2, "--target-only leaves out"),
        (("D", "--draft-only", "--bits", "4", "-o", "O"), 2, "the draft has --draft-bits"),
        (("D", "--draft-only", "--dtype", "float16", "-o", "O"), 1, "overflow it in the fusion"),
        (("T", "-d", "D", "--bits", "7", "-o", "O"), 1, "expected one of 2, 3, 4, 5, 6, 8"),
        (("T", "--target-only", "--bits", "4", "--group-size", "9", "-o", "O"), 1, "affine is 9"),
        (("T", "-d", "D", "--tau-loss", "3", "-o", "O"), 2, "--tau-loss needs --calibrate"),
        (("T", "--target-only", "--calibrate", "2", "-o", "O"), 2, "needs target and draft"),
        (("T", "-d", "D", "--calibrate", "2", "--draft-bits", "4", "-o", "O"), 2, "chooses the"),
        (("T", "-d", "D", "--upload", "no repo", "-o", "O"), 1, "is not a hub id"),
        (("T", "-o", "O"), 1, "no draft is known for"),
        (("T", "-d", "D", "--group-size", "32", "-o", "O"), 2, "--group-size needs"),
        (("missing.gguf", "-o", "O"), 1, "missing.gguf cannot be read"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    tmp_path: Path,
    folders: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"T": folders[0], "D": folders[1]}
    result = run(*(names.get(arg, arg) for arg in args))
    assert result.exit_code == code
    # Typer breaks long lines in its box.
    assert message.split()[0] in result.stderr
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "O").exists()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with HubServer() as server:
        server.token = "hf_secret"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", server.url)
        yield server


def test_upload(tmp_path: Path, folders: tuple[str, str], hub: HubServer) -> None:
    args = (folders[0], "-d", folders[1], "-o", str(tmp_path / "out"), "--upload", "me/pair")
    assert facts(*args)["uploaded"].startswith(f"{hub.url}/me/pair/commit/")
    (commit,) = hub.repos["me/pair"].commits.values()
    assert commit["pair.json"] == (tmp_path / "out" / "pair.json").read_bytes()


def test_a_login_is_asked_for_before_the_work(
    tmp_path: Path, folders: tuple[str, str], hub: HubServer
) -> None:
    hub.token = "another"
    args = (folders[0], "-d", folders[1], "-o", str(tmp_path / "out"), "--upload", "me/pair")
    result = run(*args)
    assert (result.exit_code, (tmp_path / "out").exists()) == (1, False)
    assert "log in with" in result.stderr


def test_calibration_is_shown_and_used(tmp_path: Path) -> None:
    target = cases.write_talking_target(tmp_path / "t")
    draft = cases.write_draft(tmp_path / "d", cases.DRAFT | {"vocab_size": 300})
    out = tmp_path / "out"
    args = (str(target), "-d", str(draft), "--mode", "mxfp8", "-o", str(out), "--calibrate", "1")
    found = facts(*args)
    chosen = found["calibration"]["chosen"]
    assert found["disk"]["draft"] == chosen["size"]
    assert {k: v for k, v in found["draft"].items() if k != "group_size"} == {
        group: chosen[group] for group in ("fc", "attention", "mlp") if chosen[group]
    }
    text = "\n".join(lines(found))
    assert "the target drifts by" in text
    assert "as it came" in text
