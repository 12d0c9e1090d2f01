"""`dflash-mlx models`: what is on disk, what is estimated, what is printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dflash_mlx import listing, machine
from dflash_mlx.catalog import TARGETS
from dflash_mlx.cli import app
from dflash_mlx.errors import ModelNotFoundError
from dflash_mlx.listing import Wanted, every, one
from dflash_mlx.machine import Machine
from dflash_mlx.pairs import PAIRS

from .hub_cache import DRAFT, QWEN, store, weigh

GIB = 2**30
MAC = Machine("Apple M4 Max", "metal", 64 * GIB, 48 * GIB)
LINUX = Machine("AMD EPYC", "cpu", 24 * GIB, 24 * GIB)

PAIR_KEYS = [
    *("name", "target", "draft", "kind", "family", "layers", "block", "taps", "parameters"),
    *("published_as", "disk", "memory", "fits", "downloaded", "gated", "note", "command"),
]
MEMORY_KEYS = [
    *("context", "bits", "draft_bits", "kv_bits", "dtype", "target", "draft", "target_cache"),
    *("draft_context", "allowance", "total", "complete"),
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, no embedded target, and a Mac."""
    monkeypatch.setattr(listing, "hub_cache", lambda: tmp_path / "hub")
    monkeypatch.setattr(listing, "cache_root", lambda: tmp_path / "own")
    monkeypatch.setattr(machine, "this_machine", lambda: MAC)
    return tmp_path / "hub"


def run(*args: str, columns: int = 80) -> Result:
    return CliRunner().invoke(app, ["models", *args], env={"COLUMNS": str(columns)})


# Which files are meant.


def test_files_replace_the_catalog(hub: Path) -> None:
    (before,) = (p for p in every() if p.known.name == "Qwen3-4B")
    assert before.target is None and before.target_size == TARGETS["Qwen/Qwen3-4B"]
    store(hub, "Qwen/Qwen3-4B", QWEN | {"num_hidden_layers": 18}, 4 * 10**9)
    store(hub, "z-lab/Qwen3-4B-DFlash-b16", DRAFT | {"block_size": None}, 900)
    (after,) = (p for p in every() if p.known.name == "Qwen3-4B")
    assert after.target_size.weights.parameters == 2 * 10**9
    assert (after.disk(None), after.draft_disk) == (4 * 10**9, 900)
    assert after.disk(4) == before.disk(4)
    wanted = Wanted(4096)
    assert after.memory(wanted, MAC).cache * 2 == before.memory(wanted, MAC).cache


def test_incomplete_files_do_not(hub: Path) -> None:
    folder = store(hub, "Qwen/Qwen3-4B", QWEN, 10)
    (folder / "model.safetensors").unlink()
    pick = one("Qwen3-4B")
    assert pick.target is not None and not pick.target.complete
    assert pick.target_size == TARGETS["Qwen/Qwen3-4B"]
    assert pick.disk(None) == pick.published.on_disk(None)


def test_a_copy_is_found_and_meant_by_its_name(hub: Path) -> None:
    quantised = QWEN | {"quantization": {"bits": 4, "group_size": 64}}
    store(hub, "mlx-community/Qwen3-4B-4bit", quantised, 2 * 10**9)
    store(hub, "mlx-community/Qwen3-14B-4bit", quantised, 1)
    listed = one("qwen3-4b")
    assert [c.name for c in listed.copies] == ["mlx-community/Qwen3-4B-4bit"]
    assert listed.target is None
    assert listed.command(Wanted(1, bits=4)) == "dflash-mlx chat -m Qwen3-4B --bits 4"
    copy = one("mlx-community/Qwen3-4B-4bit")
    assert copy.target == listed.copies[0]
    assert (copy.disk(4), copy.disk(8)) == (2 * 10**9, listed.disk(8))
    assert copy.memory(Wanted(1), MAC).target == pytest.approx(2 * 10**9, abs=1)
    assert copy.command(Wanted(1, bits=8)) == "dflash-mlx chat -m mlx-community/Qwen3-4B-4bit"


def test_a_folder_is_meant_by_its_path(hub: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my models" / "Qwen3-4B-8bit"
    folder.mkdir(parents=True)
    quantised = QWEN | {"quantization": {"bits": 8, "group_size": 32}}
    (folder / "config.json").write_text(json.dumps(quantised))
    weigh(folder, 10**9)
    pick = one(str(folder))
    assert pick.target is not None and pick.target.size == 10**9
    assert pick.command(Wanted(1)) == f"dflash-mlx chat -m '{folder}'"


def test_the_second_draft_of_a_target(hub: Path) -> None:
    first, second = one("Qwen3.6-35B-A3B"), one("qwen3.6-35b-a3b-dflash2")
    assert first.known.target == second.known.target
    assert (first.draft_size.shape.block, second.draft_size.shape.block) == (16, 8)
    assert second.command(Wanted(1)) == "dflash-mlx chat -m Qwen3.6-35B-A3B-DFlash2"


def test_the_embedded_draft_is_always_here(hub: Path) -> None:
    pick = one("smollm2-135m")
    assert pick.target is None
    assert pick.draft is not None and pick.draft.complete
    assert (pick.draft_size.shape.layers, pick.draft_size.shape.block) == (3, 4)


def test_names_of_no_pair_are_refused(hub: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no pair is known for 'gpt2'"):
        one("gpt2")


# What fits.


def test_a_cpu_computes_in_float32(hub: Path) -> None:
    pick = one("Qwen3-4B")
    mac, linux = (pick.memory(Wanted(4096), place) for place in (MAC, LINUX))
    assert (linux.target, linux.cache) == (2 * mac.target, 2 * mac.cache)
    quantised = pick.memory(Wanted(4096, bits=4), LINUX).target
    assert quantised == pytest.approx(4_022_468_096 * 5 / 8, abs=1)


@pytest.mark.parametrize(
    ("name", "wanted", "fits"),
    [
        ("Qwen3-4B", Wanted(4096), True),
        ("Qwen3-4B", Wanted(1_000_000), False),
        ("Qwen3.5-27B", Wanted(4096), False),
        ("Qwen3.5-27B", Wanted(4096, bits=8), True),
        ("gemma-4-12B-it", Wanted(4096), None),  # its draft's context is not known
        ("MiniMax-M2.5", Wanted(4096), False),  # too large without it
    ],
)
def test_what_fits_a_mac(hub: Path, name: str, wanted: Wanted, fits: bool | None) -> None:
    assert one(name).fits(wanted, MAC) is fits


# What is printed.

TABLE_80 = """\
Apple M4 Max (metal), 48.0 GiB for models
memory at 4096 tokens, targets as published, in bfloat16
target                       kind      bf16 8-bit 4-bit memory fits  here
smollm2-135m                 DFlash 2   0.3   0.2   0.1    0.9 yes   draft
  in this package · 3 layers, block 4, 5 taps
Qwen3-4B                     DFlash     8.5   5.0   3.1   10.1 yes   copy
  z-lab/Qwen3-4B-DFlash-b16 · 5 layers, block 16, 5 taps
Qwen3-8B                     DFlash    17.2  10.1   6.2   19.3 yes   no
  z-lab/Qwen3-8B-DFlash-b16 · 5 layers, block 16, 5 taps
Qwen3-Coder-30B-A3B-Instruct DFlash    57.8  31.1  16.9   61.6 8-bit no
  z-lab/Qwen3-Coder-30B-A3B-DFlash · 8 layers, block 16, 5 taps
Qwen3-Coder-Next             DFlash     149  79.7  42.6    158 4-bit no
  z-lab/Qwen3-Coder-Next-DFlash · 8 layers, block 16, 5 taps
"""
LINES_120 = """\
target                       draft                           kind layers block taps  bf16 8-bit 4-bit memory fits  here
smollm2-135m                 in this package                    2      3     4    5   0.3   0.2   0.1    0.9 yes   draft
Qwen3.6-35B-A3B-DFlash2      incoai/Qwen3.6-35B-A3B-DFlash2     2      6     8    8  65.5  35.3  19.1   69.6 8-bit no
gpt-oss-20b                  z-lab/gpt-oss-20b-DFlash           1      8     8    5 14.3*  12.7  11.9   15.7 yes   no
Llama-3.1-8B-Instruct        z-lab/LLaMA3.1-8B-Instruct-DFl…    1      5    10    5  16.9   9.9   6.2   18.9 yes   no
GLM-5.1                      z-lab/GLM-5.1-FP8-DFlash           1      ?     ?    ? >1386  >736  >390  >1456 no    no
"""  # noqa: E501
DETAILS = """\
target  Qwen/Qwen3-8B (qwen3)
draft   z-lab/Qwen3-8B-DFlash-b16 (DFlash)
        5 layers, block 16, 5 taps
disk    target 15.3 GiB as published, in bf16; 8.1 GiB in 8 bits, 4.3 GiB in 4
        bits
        draft 2.0 GiB
memory  7.5 GiB at 8192 tokens, target in 4 bits
        target 4.3 GiB, draft 1.0 GiB
        target's cache 1.2 GiB, draft's context 165 MiB
        allowance for passes and buffers 852 MiB
fits    yes; Apple M4 Max (metal) has 48.0 GiB
here    nothing
sizes   each estimated from the published config
note    the draft learned answers without thinking: more is accepted with
        --no-think
run     dflash-mlx chat -m Qwen3-8B --bits 4 --draft-bits 8
"""


def test_the_table_on_80_columns(hub: Path) -> None:
    store(hub, "mlx-community/Qwen3-4B-4bit", QWEN | {"quantization": {"bits": 4}}, 10**9)
    result = run(columns=80)
    assert result.exit_code == 0
    assert result.stdout.startswith(TABLE_80)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stderr == ""
    for pair in PAIRS:
        assert f"\n{pair.name} " in result.stdout
        assert f"\n  {pair.draft or 'in this package'} · " in result.stdout


def test_the_table_on_120_columns(hub: Path) -> None:
    lines = run(columns=120).stdout.splitlines()
    assert max(map(len, lines)) <= 120
    assert [line for line in LINES_120.splitlines() if line not in lines] == []
    assert len([line for line in lines if " z-lab/" in line or " incoai/" in line]) == 26


def test_names_are_whole_where_there_is_room(hub: Path) -> None:
    assert "…" not in run(columns=140).stdout
    assert "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat " in run(columns=140).stdout


def test_details(hub: Path) -> None:
    result = run("qwen3-8b", "--bits", "4", "--draft-bits", "8", "--context", "8192")
    assert (result.exit_code, result.stdout) == (0, DETAILS)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "Kimi-K2.5",
            "disk    target 553 GiB as published, in int4; 543 GiB in 8 bits, 538 GiB in 4",
        ),
        (
            "MiniMax-M2.7",
            "disk    target 426 GiB in bf16 (published in fp8, which is half of it); 226 GiB",
        ),
        ("MiniMax-M2.7", "gated   the hub gives out the draft only on request"),
        (
            "MiniMax-M2.7",
            "memory  at least 450 GiB at 4096 tokens, target as published, in bfloat16",
        ),
        ("Llama-3.1-8B-Instruct", "gated   the hub gives out the target only on request"),
        ("gemma-4-12B-it", "fits    ?; Apple M4 Max (metal) has 48.0 GiB"),
        ("Qwen3.5-27B", "fits    no, but with --bits 8; Apple M4 Max (metal) has 48.0 GiB"),
        ("Qwen3.8-27B", "draft   z-lab/Qwen3.8-27B-DFlash2 (DFlash 2)"),
    ],
)
def test_details_tell(hub: Path, name: str, line: str) -> None:
    assert line in run(name).stdout.splitlines()


def test_details_name_what_is_here(hub: Path) -> None:
    store(hub, "Qwen/Qwen3-4B", QWEN, 8 * GIB)
    store(hub, "z-lab/Qwen3-4B-DFlash-b16", DRAFT, GIB)
    lines = run("Qwen3-4B").stdout.splitlines()
    assert "here    Qwen/Qwen3-4B (8.0 GiB), z-lab/Qwen3-4B-DFlash-b16 (1.0 GiB)" in lines
    assert "sizes   each read from its files" in lines
    assert any(line.startswith("Qwen3-4B ") and line.endswith(" yes") for line in _table())


def _table() -> list[str]:
    return run(columns=120).stdout.splitlines()


def test_json(hub: Path) -> None:
    store(hub, "z-lab/Qwen3-4B-DFlash-b16", DRAFT, 1074854400)
    result = run("--json", "--context", "1000", "--bits", "8")
    assert result.stdout.count("\n") == 1
    record = json.loads(result.stdout)
    assert list(record) == ["machine", "pairs"]
    assert record["machine"] == {
        "name": "Apple M4 Max",
        "kind": "metal",
        "memory": 64 * GIB,
        "usable": 48 * GIB,
    }
    assert [pair["name"] for pair in record["pairs"]] == [pair.name for pair in PAIRS]
    for pair in record["pairs"]:
        assert list(pair) == PAIR_KEYS
        assert list(pair["memory"]) == MEMORY_KEYS
        assert list(pair["disk"]["target"]) == ["bf16", "8-bit", "4-bit"]
        assert list(pair["downloaded"]) == ["target", "draft", "copies"]
    small = record["pairs"][1]
    assert small["memory"]["total"] == sum(
        small["memory"][part]
        for part in ("target", "draft", "target_cache", "draft_context", "allowance")
    )
    assert small["downloaded"] == {"target": False, "draft": True, "copies": []}
    assert (small["fits"], small["kind"], small["taps"]) == (True, 1, 5)
    assert record["pairs"][0]["draft"] is None


def test_json_of_one_pair(hub: Path) -> None:
    store(hub, "mlx-community/gpt-oss-20b-8bit", {"quantization": {"bits": 8}}, 5)
    (pair,) = json.loads(run("gpt-oss-20b", "--json").stdout)["pairs"]
    assert pair["published_as"] == "mxfp4"
    (copy,) = pair["downloaded"]["copies"]
    assert (copy["name"], copy["bits"], copy["size"]) == ("mlx-community/gpt-oss-20b-8bit", 8, 5)


def test_a_wrong_name_is_one_line(hub: Path) -> None:
    result = run("no-such-model", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no pair is known for 'no-such-model'")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "args", [["--context", "0"], ["--context", "many"], ["--bits", "5"], ["a", "b"], ["--nope"]]
)
def test_wrong_usage_exits_2(hub: Path, args: list[str]) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")


def test_help_shows_an_example() -> None:
    assert "dflash-mlx models --context 32768 --bits 4" in run("-h").stdout


@pytest.mark.skipif(sys.platform != "linux", reason="a Mac is asked for its memory through MLX")
def test_mlx_is_not_needed() -> None:
    code = """
import sys
from dflash_mlx.cli import app
try:
    app(["models", "--json"])
finally:
    print(sorted({"mlx", "mlx_lm", "transformers"} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert len(json.loads(done.stdout)["pairs"]) == len(PAIRS)
