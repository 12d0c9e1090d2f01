"""The command `bench kernels`: what it runs, what it prints, how it exits."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from typer.testing import CliRunner, Result

from dflash_mlx.bench import setting
from dflash_mlx.bench.kernels import race, timing
from dflash_mlx.bench.kernels.cases import Case, Kind
from dflash_mlx.bench.kernels.table import ENTRIES
from dflash_mlx.bench.kernels.timing import Pace
from dflash_mlx.cli import app
from dflash_mlx.errors import UsageError
from tests.metal_cpu import MetalKernel, Options

Emulate = Callable[[Options], list[MetalKernel]]
BY_NAME = {entry.name: entry for entry in ENTRIES}
QUICK = ("--small", "--repeat", "1", "--rows", "2", "--bits", "4")


def bench(*args: str, columns: int = 80) -> Result:
    return CliRunner().invoke(app, ["bench", "kernels", *args], env={"COLUMNS": str(columns)})


def records(result: Result) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The cases and the summary of a run with --json."""
    *cases, last = map(json.loads, result.stdout.splitlines())
    return cases, last["summary"]


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> None:
    """For kernels of tests, which run without Metal."""
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)


def only(monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Any], **more: Any) -> None:
    """Leave dense products alone in the table, by this kernel."""
    entry = replace(BY_NAME["matmul_small"], kernel=kernel, **more)
    monkeypatch.setattr(race, "ENTRIES", (entry,))


# The kernels themselves.


def test_every_kernel_runs_beside_mlx_and_agrees(emulate: Emulate) -> None:
    made = emulate(Options())
    result = bench("--small", "--repeat", "1", "--rows", "9", "--bits", "4", "--json")
    assert result.exit_code == 0, result.output
    cases, summary = records(result)
    wide = [entry for entry in ENTRIES if entry.most >= 9]
    assert list(dict.fromkeys(case["op"] for case in cases)) == [entry.name for entry in wide]
    assert summary["cases"] == len(cases) == sum(len(entry.small) for entry in wide)
    assert (summary["wrong"], summary["failed"], summary["interrupted"]) == (0, 0, False)
    for case in cases:
        (ours,) = case["ours"]
        assert (ours["name"], ours["status"], ours["samples"]) == ("kernel", "ok", 1)
        assert ours["threads"] == BY_NAME[case["op"]].threads[0]
        assert ours["error"] < 0.8  # rounding alone reaches 0.5
        # On a CPU MLX's own operations round on the way.
        assert all(way["status"] in ("ok", "inexact") for way in case["stock"])
        assert all(way["samples"] == 1 for way in case["stock"])
        assert case["bytes"] > 0 and case["flops"] > 0 and case["calls"] > 0
    if not mx.metal.is_available():
        ran = {kernel.name for kernel in made}
        assert {"quantized_matmul_small", "block_attention_merge", "candidate_path"} <= ran


def test_the_kernel_for_few_rows_runs_too(emulate: Emulate) -> None:
    emulate(Options())
    args = ("--small", "--repeat", "1", "--op", "quantized_matmul_rows", "--bits", "8", "--json")
    cases, summary = records(bench(*args))
    assert sorted({case["rows"] for case in cases}) == [1, 2, 4, 5]
    assert {case["ours"][0]["status"] for case in cases} == {"ok"}
    assert (summary["failed"], summary["wrong"]) == (0, 0)


def test_sweeping_times_every_size_of_threadgroups(emulate: Emulate) -> None:
    emulate(Options())
    result = bench(*QUICK, "--op", "candidate_path", "--sweep", "--json")
    assert result.exit_code == 0, result.output
    sizes = sorted(BY_NAME["candidate_path"].threads, reverse=True)
    for case in records(result)[0]:
        assert [way["threads"] for way in case["ours"]] == sizes
        assert all(way["status"] == "ok" for way in case["ours"])


def test_most_threads(emulate: Emulate) -> None:
    emulate(Options())
    args = (*QUICK, "--op", "candidate_path", "--op", "block_attention", "--threads", "100")
    cases, summary = records(bench(*args, "--json"))
    for case in cases:
        (way,) = case["ours"]
        if case["op"] == "candidate_path":
            assert (way["threads"], way["status"]) == (64, "ok")
        else:
            assert way["status"] == "failed"
            assert way["problem"] == "it has no threadgroup of 100 threads or fewer"
    assert summary["failed"] == 2


# What goes wrong.


def test_a_wrong_kernel_is_not_timed_and_the_exit_code_is_1(
    monkeypatch: pytest.MonkeyPatch, metal: None
) -> None:
    def kernel(x: mx.array, w: mx.array, threads: int) -> mx.array:
        return x @ w.T * (1.05 if x.shape[0] == 5 else 1)

    only(monkeypatch, kernel)
    result = bench("--small", "--rows", "5", "--rows", "6", "--repeat", "2")
    assert result.exit_code == 1
    row, good = (line.split() for line in result.stdout.splitlines() if line.startswith("   "))
    assert row[:4] == ["5", "256", "-", "-"] and row[-1] == "WRONG"
    assert good[0] == "6" and "WRONG" not in good
    (problem,) = re.findall(r"^kernel of 256 threads at 5 rows: (.*)", result.stdout, re.M)
    assert re.fullmatch(r"WRONG: [\d.]+ times as far from the reference as.*", problem)
    assert result.stdout.splitlines()[-1].endswith("1 WRONG")
    result = bench("--small", "--rows", "5", "--repeat", "2", "--json")
    assert result.exit_code == 1
    (case,), summary = records(result)
    assert case["ours"][0]["status"] == "wrong" and case["ours"][0]["samples"] == 0
    assert case["ours"][0]["error"] > 1 and case["ours"][0]["ratio"] is None
    assert summary["wrong"] == 1


def test_a_refused_size_of_threadgroups_gives_way_to_the_next(
    monkeypatch: pytest.MonkeyPatch, metal: None
) -> None:
    def kernel(x: mx.array, w: mx.array, threads: int) -> mx.array:
        if threads > 64:
            raise RuntimeError(f"Thread group size ({threads}) is greater than 64")
        return x @ w.T

    only(monkeypatch, kernel)
    result = bench(*QUICK, "--json")
    assert result.exit_code == 0
    (case,), _ = records(result)
    ways = [(way["threads"], way["status"]) for way in case["ours"]]
    assert ways == [(256, "failed"), (128, "failed"), (64, "ok")]
    assert case["ours"][0]["problem"] == (
        "RuntimeError: Thread group size (256) is greater than 64"
    )


def test_a_kernel_that_does_not_build_is_one_line_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, metal: None
) -> None:
    output = "Unable to build metal library from source\nprogram:7:3: error: no such thing\nmore"

    def broken(x: mx.array, w: mx.array, threads: int) -> mx.array:
        raise RuntimeError(output)

    good = replace(BY_NAME["matmul_small"], kernel=lambda x, w, threads: x @ w.T)
    bad = replace(good, name="bad", kernel=broken, threads=(32,))
    monkeypatch.setattr(race, "ENTRIES", (bad, good))
    result = bench(*QUICK)
    assert result.exit_code == 0
    assert "kernel of 32 threads at 2 rows: RuntimeError: program:7:3: error:" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("1 did not run")
    assert bench(*QUICK, "--op", "bad").exit_code == 1


def test_sizes_that_cannot_be_made_are_lines_too(
    monkeypatch: pytest.MonkeyPatch, metal: None
) -> None:
    def open_none(sizes: Any, kind: Kind) -> Any:
        raise RuntimeError("[malloc] Unable to allocate")

    only(monkeypatch, lambda x, w, threads: x @ w.T, open=open_none)
    cases, summary = records(bench(*QUICK, "--rows", "3", "--json"))
    assert [case["rows"] for case in cases] == [2, 3]
    assert all(case["ours"][0]["problem"].endswith("Unable to allocate") for case in cases)
    assert summary["failed"] == 2


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_an_interrupt_keeps_what_was_measured(
    more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, metal: None
) -> None:
    def kernel(x: mx.array, w: mx.array, threads: int) -> mx.array:
        if x.shape[0] == 3:
            raise KeyboardInterrupt
        return x @ w.T

    only(monkeypatch, kernel)
    result = bench(*QUICK, "--rows", "3", "--rows", "4", *more)
    assert result.exit_code == 130
    if more:
        (case,), summary = records(result)
        assert case["rows"] == 2 and case["ours"][0]["status"] == "ok"
        assert summary["interrupted"] and summary["cases"] == 1
    else:
        rows = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("   ")]
        assert rows == ["2"]
        assert result.stdout.splitlines()[-1].startswith("stopped after 1 case: ")


def test_without_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    result = bench(*QUICK)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: no Metal GPU here; the kernels need a Mac with Apple Silicon. "
        "--reference times their plain MLX references instead\n"
    )


def test_references_need_no_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    result = bench(*QUICK, "--reference", "--json")
    assert result.exit_code == 0, result.output
    cases, summary = records(result)
    assert {case["op"] for case in cases} == set(BY_NAME)
    for case in cases:
        (way,) = case["ours"]
        assert (way["name"], way["threads"], way["status"]) == ("reference", None, "ok")
    assert {"device", "kind", "gpu_cores", "system", "versions", "copy_gb_s"} <= set(summary)
    assert result.stderr == ""


WRONG_OPTIONS = {
    "no such op": (("--op", "nope"), 1, "no kernel is called 'nope'; there are quantized_matmul"),
    "no rows": (("--rows", "0"), 1, "0 rows: expected 1 to 64"),
    "bits": (("--bits", "7"), 1, "7 bits: expected one of 2, 3, 4, 5, 6, 8"),
    "nothing left": (("--op", "candidate_path", "--rows", "1"), 1, "leave nothing to time"),
    "no samples": (("--repeat", "0"), 2, "--repeat needs 1 at least"),
    "no time": (("--seconds", "0"), 2, "--seconds needs more than 0"),
    "no threads": (("--reference", "--sweep"), 2, "--reference has no threadgroups to choose"),
}


@pytest.mark.parametrize(("args", "code", "message"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_options_that_make_no_sense(args: tuple[str, ...], code: int, message: str) -> None:
    result = bench(*args)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""


# The plan and the screen.


def test_the_plan_is_every_kernel_at_every_size_and_width() -> None:
    subjects = race.plan(race.Wanted())
    assert {s.entry.name for s in subjects} == set(BY_NAME)
    for entry in ENTRIES:
        mine = [s for s in subjects if s.entry is entry]
        assert len(mine) == len(entry.sizes) * (len(entry.bits) or 1)
        assert all(
            list(s.rows) == [r for r in race.ROWS if entry.least <= r <= entry.most] for s in mine
        )
    with pytest.raises(UsageError, match="no type is called"):
        race.plan(race.Wanted(dtype="int4"))


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_screen(
    columns: int, monkeypatch: pytest.MonkeyPatch, metal: None
) -> None:
    def timed(case: Case, ways: dict[str, Any], pace: Pace) -> timing.Times:
        samples = {name: [1e-3 * (i + 1), 2e-3, 3e-3] for i, name in enumerate(ways)}
        return timing.Times(samples, 1e-6, 5)

    monkeypatch.setattr(race, "interleaved", timed)
    only(monkeypatch, lambda x, w, threads: x @ w.T)
    result = bench(*QUICK, columns=columns)
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[2].startswith("a plain copy reads and writes ")
    at = next(i for i, line in enumerate(lines) if line.startswith("matmul_small"))
    assert lines[at] == "matmul_small beside mx.matmul"
    assert lines[at + 2].rstrip() == "40 x 72, bfloat16"
    wide = columns == 120
    heads = "rows threads µs GB/s of copy TFLOP/s MLX µs ratio quartiles"
    more = " MLX GB/s the fastest of MLX"
    assert " ".join(lines[at + 3].split()) == heads + more * wide
    row = lines[at + 4].split()
    assert row[:3] == ["2", "256", "2000.0"]
    end = ["2000.0", "1.00", "1.00", "-", "1.50"]
    assert (row[-7:-2] if wide else row[-5:]) == end
    assert (row[-1] == "matmul") == wide
    assert lines[-1] == "1 case: faster than MLX in 0, not faster in 1"


def test_a_sweep_names_the_best(monkeypatch: pytest.MonkeyPatch, metal: None) -> None:
    def timed(case: Case, ways: dict[str, Any], pace: Pace) -> timing.Times:
        return timing.Times({name: [1e-3 * (1 + int(name))] for name in ways}, 0.0, 1)

    monkeypatch.setattr(race, "interleaved", timed)
    only(monkeypatch, lambda x, w, threads: x @ w.T, threads=(64, 128))
    lines = bench(*QUICK, "--sweep", columns=100).stdout.splitlines()
    said = "matmul_small: time by threads, 1 is the best of each case: 128 1.00, 64 2.00"
    assert said in lines


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert setting.read_cores("      Type: GPU\n      Total Number of Cores: 40\n") == 40
    assert setting.read_cores("Chipset Model: AMD Radeon Pro 555") is None
    assert setting.copy_speed(2**16) > 0
    missing = ["/nowhere/system_profiler"]
    monkeypatch.setattr(setting.sys, "platform", "darwin")
    monkeypatch.setattr(setting, "CORES", missing)
    assert setting.gpu_cores() is None


def test_help_shows_examples() -> None:
    result = bench("--help", columns=100)
    assert result.exit_code == 0
    assert "dflash-mlx bench kernels --op block_attention --sweep" in result.stdout
    assert "kernels" in CliRunner().invoke(app, ["bench", "--help"]).stdout
