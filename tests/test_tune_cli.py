"""`dflash-mlx tune`, and widths on the command line and in the chat."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dflash_mlx import loading
from dflash_mlx.cli import app
from dflash_mlx.cli.chat import ChatOptions
from dflash_mlx.cli.options import SamplingOptions, SpeculationOptions
from dflash_mlx.cli.ready import make_ready
from dflash_mlx.cli.render import Screen
from dflash_mlx.costs import Corrected
from dflash_mlx.doctor import examine
from dflash_mlx.guide import Guide
from dflash_mlx.options import AUTO, Options
from dflash_mlx.ranks import Ranks
from dflash_mlx.tune import measure, store
from dflash_mlx.tune.store import Record, setting_of, write

from .choosers import linear
from .test_repl import hold, said
from .tiny import tiny_pair


def command(*args: str) -> Result:
    return CliRunner().invoke(app, list(args), env={"COLUMNS": "120"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(measure, "CONTEXTS", (30,))
    monkeypatch.setattr(loading, "load", lambda *args, **kwargs: tiny_pair())
    return tmp_path


def test_measure_and_show() -> None:
    done = command("tune", "tiny", "--contexts", "20,40", "--repeats", "1")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("tiny with tiny-dflash on ")
    assert lines[1].split() == ["context", "verified", "pass", "ms", "round", "ms", "pays", "from"]
    assert [line.split()[:2] for line in (lines[2], lines[6])] == [["20", "1"], ["40", "1"]]
    assert [line.split()[0] for line in lines[3:6]] == ["2", "3", "4"]
    assert len(list(store.records())) == 1


def test_json() -> None:
    done = command("tune", "run", "tiny", "--contexts", "20", "--repeats", "1", "--json", "-q")
    (kept,) = store.records()
    assert Record.from_dict(json.loads(done.stdout), "stdout") == kept


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tiny", "--repeats", "0"], "--repeats needs 1"),
        (["tiny", "--contexts", "x"], "'x' is not a list of numbers"),
        (["tiny", "--contexts", "0"], "'0' is not a list of numbers"),
        (["tiny", "--contexts", "9000"], "holds 2048 tokens"),
        (["import", "absent.json"], "absent.json cannot be read"),
    ],
)
def test_what_is_refused(args: list[str], message: str) -> None:
    done = command("tune", *args)
    assert done.exit_code in (1, 2)
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_export_and_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Record(setting_of(tiny_pair()), linear(4, 0.1))
    write(kept)
    file = tmp_path / "costs.json"
    assert command("tune", "export", str(file)).exit_code == 0
    assert json.loads(command("tune", "export").stdout) == json.loads(file.read_text())
    monkeypatch.setattr(store, "cache_root", lambda: tmp_path / "elsewhere")
    assert list(store.records()) == []
    done = command("tune", "import", str(file))
    assert "1 record kept, of them 1 for " in done.stderr
    assert list(store.records()) == [kept]


@pytest.mark.parametrize("text", ["{", "[1]", '{"format": 1}', '[{"format": 9}]'])
def test_what_is_not_imported(tmp_path: Path, text: str) -> None:
    file = tmp_path / "costs.json"
    file.write_text(text)
    done = command("tune", "import", str(file))
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {file}")
    assert list(store.records()) == []


def test_doctor_shows_what_was_measured() -> None:
    kept = Record(setting_of(tiny_pair()), linear(4, 0.1))
    write(kept)
    assert examine().costs == (kept,)
    shown = command("doctor").stdout
    assert "tiny in float32" in " ".join(shown.split())
    (found,) = json.loads(command("doctor", "--json").stdout)["costs"]
    assert Record.from_dict(found, "stdout") == kept


def test_an_answer_with_widths_of_its_own() -> None:
    write(Record(setting_of(tiny_pair()), linear(4, 0.0)))
    done = command("chat", "-p", "hello", "--block", "auto", "--json", "-n", "30")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert sum(found["widths"].values()) == found["rounds"]
    assert set(map(int, found["widths"])) <= {1, 2, 3, 4}
    whole = command("chat", "-p", "hello", "--block", "4", "--json", "-n", "30")
    fixed = json.loads(whole.stdout)
    assert found["token_ids"] == fixed["token_ids"]
    assert fixed["widths"] == {"4": fixed["rounds"]}


def test_chat_chooses_unless_told() -> None:
    def asked(block: str | None) -> int | str | None:
        speculation = SpeculationOptions(block=block)
        return ChatOptions().generation(SamplingOptions(), speculation).block

    assert [asked(block) for block in (None, "auto", "4")] == [AUTO, AUTO, 4]


def test_nothing_is_measured_where_no_width_is_chosen() -> None:
    guided = Options(block=AUTO, guide=Guide.json_schema('{"type": "object"}'))
    screen = Screen(quiet=True)
    for pair, options in (
        (tiny_pair(), guided),
        (tiny_pair(draft=False), Options(block=AUTO)),
        (tiny_pair(), Options()),
    ):
        make_ready(pair, options, screen)
    assert list(store.records()) == []
    make_ready(tiny_pair(), Options(block=AUTO), screen)
    assert len(list(store.records())) == 1


def test_several_processes_are_told_what_their_first_answer_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair, auto = tiny_pair(), Options(block=AUTO)
    pair.target.ranks = Ranks()
    pair.ranks.size = 2
    make_ready(pair, auto, Screen())
    assert capsys.readouterr().err == "the first answer begins by measuring rounds, once\n"
    assert list(store.records()) == []
    pair.costs = Corrected(linear(4, 0.1))
    make_ready(pair, auto, Screen())
    assert capsys.readouterr().err == ""


def test_a_width_that_is_neither() -> None:
    done = command("chat", "-p", "hello", "--block", "many")
    assert done.exit_code == 2
    assert "'many' is neither a number nor auto" in " ".join(done.stderr.split())


def test_the_chat_changes_to_auto() -> None:
    chat = hold("/block auto", "hello", "/stats")
    assert chat.options.block == "auto"
    assert list(store.records()) != []
    assert "/block is followed by a number of tokens or auto" in said("/block some")[0]
