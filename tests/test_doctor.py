"""`dflash-mlx doctor`: facts about a machine, the self check, what is printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from typer.testing import CliRunner, Result

from dflash_mlx import __version__, doctor, machine, selfcheck, step
from dflash_mlx.cli import app
from dflash_mlx.doctor import Cache, Report, examine
from dflash_mlx.machine import Machine
from dflash_mlx.selfcheck import SelfCheck, self_check

GIB = 2**30
MAC = Machine("Apple M4 Max", "metal", 64 * GIB, 48 * GIB, wired_limit=56 * GIB)
GOOD = SelfCheck(tokens=64, same=64, rounds=46, drafted=138, accepted=17)


def run(*args: str, columns: int = 80) -> Result:
    return CliRunner().invoke(app, ["doctor", *args], env={"COLUMNS": str(columns)})


# The machine.


@pytest.mark.parametrize(
    ("version", "wanted", "expected"),
    [
        ("0.32.1", ">=0.32.1, <0.33", True),
        ("0.32.10", ">=0.32.2, <0.33", True),
        ("0.32.2", ">=0.32.10, <0.33", False),
        ("0.32.0", ">=0.32.1, <0.33", False),
        ("0.33.0", ">=0.32.1, <0.33", False),
        ("0.33.0.dev3", "<0.33", False),
        ("0.32.4+local", ">0.32.3, <=0.32.4", True),
        ("0.32.3", ">0.32.3", False),
        ("1.0", "==1.0.0, !=1.1", True),
    ],
)
def test_version_ranges(version: str, wanted: str, expected: bool) -> None:
    assert machine.in_range(version, wanted) is expected


def test_the_tested_range_is_the_packages_own(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = [
        "mlx-lm<0.33,>=0.32.1",
        'mlx<0.33,>=0.32.2; platform_system == "Darwin"',
        'mlx[cpu]<0.33,>=0.32.2; platform_system == "Linux"',
        'mlx-more<9; extra == "all"',
    ]
    monkeypatch.setattr(machine, "requires", lambda _: needed)
    assert machine.tested_range("mlx") == ">=0.32.2, <0.33"
    assert machine.tested_range("mlx-lm") == ">=0.32.1, <0.33"
    assert machine.tested_range("mlx-more") is None
    assert machine.tested_range("numpy") is None


def test_a_source_tree_without_metadata_has_no_range(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine, "requires", requires)
    assert machine.tested_range("mlx-lm") is None


def test_versions() -> None:
    found = machine.versions()
    assert list(found) == ["dflash-mlx", "python", *machine.PACKAGES]
    assert found["dflash-mlx"] == __version__
    assert all(re.match(r"\d+\.\d+", str(version)) for version in found.values())


@pytest.mark.skipif(sys.platform != "linux", reason="reads what only Linux has")
def test_linux_without_cuda_computes_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "limit")
    found = machine.this_machine()
    assert (found.kind, found.dtype, found.itemsize) == ("cpu", "float32", 4)
    assert found.name
    total = re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert total is not None
    assert found.memory == found.usable == int(total[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads what only Linux has")
@pytest.mark.parametrize(("limit", "held"), [("1048576\n", True), ("max\n", False)])
def test_a_container_may_use_less(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, held: bool
) -> None:
    (tmp_path / "limit").write_text(limit)
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "limit")
    assert (machine.this_machine().memory == 2**20) is held


def gpu(monkeypatch: pytest.MonkeyPatch, metal: bool, **info: Any) -> None:
    """Let MLX say that it computes on a GPU."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    monkeypatch.setattr(mx, "device_info", lambda: info)


@pytest.mark.parametrize(
    ("said", "limit"), [("57344\n", 56 * GIB), ("0\n", None), ("", None), (None, None)]
)
def test_a_mac_is_what_metal_says(
    monkeypatch: pytest.MonkeyPatch, said: str | None, limit: int | None
) -> None:
    def sysctl(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command == ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"]
        if said is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, said)

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(machine.subprocess, "run", sysctl)
    sizes = {"memory_size": 64 * GIB, "max_recommended_working_set_size": 48 * GIB}
    gpu(monkeypatch, metal=True, device_name="Apple M4 Max", **sizes)
    expected = Machine("Apple M4 Max", "metal", 64 * GIB, 48 * GIB, limit)
    assert machine.this_machine() == expected
    assert (expected.dtype, expected.itemsize) == ("bfloat16", 2)


@pytest.mark.skipif(sys.platform != "linux", reason="CUDA is for Linux")
def test_cuda_beside_mlx_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_has", lambda package: package == "mlx-cuda-13")
    gpu(monkeypatch, metal=False, device_name="NVIDIA H200", total_memory=139 * GIB)
    assert machine.this_machine() == Machine("NVIDIA H200", "cuda", 139 * GIB, 139 * GIB)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a slow BLAS")
@pytest.mark.parametrize(
    ("first", "name"), [("prefer_openblas()", "OpenBLAS"), ("", "the reference")]
)
def test_the_blas_in_use_is_told(first: str, name: str) -> None:
    code = f"""
from dflash_mlx.blas import prefer_openblas
{first}
import mlx.core
from dflash_mlx.machine import blas
print(blas())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(name)


# The self check.


def test_the_self_check_passes_and_is_not_empty() -> None:
    check = self_check()
    assert check.passed
    assert check.tokens == check.same == selfcheck.TOKENS
    assert check.rounds < check.tokens - 1
    assert check.drafted == 3 * check.rounds
    # So that rounds end at the first, at a later and at the last place.
    assert 10 <= check.accepted <= check.drafted - 10


def test_the_self_check_is_the_same_whatever_was_drawn_before() -> None:
    first = self_check()
    mx.random.seed(99)
    mx.eval(mx.random.normal((10,)))
    assert self_check() == first


def test_the_self_check_notices_what_is_accepted_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    def accept_all(drafted: mx.array, best: mx.array) -> mx.array:
        accepted = mx.array([drafted.size], mx.int32)
        return mx.concatenate([accepted, drafted.flatten(), best.flatten()[-1:]]).astype(mx.int32)

    monkeypatch.setattr(step, "accept_greedy", accept_all)
    check = self_check()
    assert not check.passed
    assert check.same < check.tokens


def test_a_draft_that_never_counts_is_a_failure() -> None:
    assert not SelfCheck(tokens=64, same=64, rounds=63, drafted=189, accepted=0).passed


# The report.


def test_all_is_well_here() -> None:
    report = examine()
    assert report.problems == ()
    assert report.check is not None and report.check.passed
    assert [cache.name for cache in report.caches] == ["hub", "dflash-mlx"]


def test_a_version_outside_the_range_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"mlx": "0.32.4", "mlx-lm": "0.40.0"}
    monkeypatch.setattr(doctor, "versions", lambda: versions)
    monkeypatch.setattr(doctor, "tested_range", lambda name: ">=0.32.1, <0.33")
    problem = "mlx-lm 0.40.0 is not among the tested versions, >=0.32.1, <0.33"
    assert examine().problems == (problem,)
    monkeypatch.setattr(doctor, "versions", lambda: {"mlx": "0.32.4", "mlx-lm": None})
    assert examine().problems == ("mlx-lm is not installed; install dflash-mlx again",)


def test_a_self_check_that_breaks_off_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> SelfCheck:
        raise RuntimeError("[metal::load]\n no device")

    monkeypatch.setattr(selfcheck, "self_check", broken)
    report = examine()
    assert report.check is None
    reason = "the self check broke off: RuntimeError: [metal::load] no device"
    assert report.problems == (reason,)


def test_different_tokens_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = SelfCheck(tokens=64, same=9, rounds=40, drafted=120, accepted=24)
    monkeypatch.setattr(selfcheck, "self_check", lambda: bad)
    assert examine().problems == (
        "the self check failed: DFlash and plain decoding agree in 9 of 64 tokens, 24 of 120 "
        "drafted were accepted",
    )


def test_mlx_that_does_not_start_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Machine:
        raise ImportError("libmlx.dylib: no such file")

    monkeypatch.setattr(doctor, "this_machine", broken)
    report = examine()
    assert report.machine is None
    assert report.problems == ("MLX does not start: ImportError: libmlx.dylib: no such file",)
    assert report.as_dict()["machine"] is None


def test_a_mac_without_metal_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "this_machine", lambda: Machine("Apple M1", "cpu", 8, 8))
    monkeypatch.setattr(doctor, "blas", lambda: None)
    monkeypatch.setattr(sys, "platform", "darwin")
    problem = "MLX computes on the CPU of this Mac; its Metal device is not available"
    assert problem in examine().problems


def test_a_cache_that_cannot_be_written_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(doctor, "hub_cache", lambda: tmp_path / "file" / "hub")
    monkeypatch.setattr(doctor, "cache_root", lambda: tmp_path / "new" / "own")
    problem = f"the cache folder {tmp_path / 'file' / 'hub'} cannot be written to"
    assert examine().problems == (problem,)


# What is printed.

PRINTED = """\
dflash-mlx        1.0
python            3.12.1
mlx               0.32.4
mlx-lm            not installed
tested with       mlx >=0.32.2, <0.33; mlx-lm >=0.32.1, <0.33
system            macOS 15.1 arm64
device            Apple M4 Max (Metal), computes in bfloat16 by default
memory            64.0 GiB, of it for models 48.0 GiB
wired limit       set to 56.0 GiB
kernels           none: there is no Metal here
hub cache         /h/hub (3.0 GiB)
dflash-mlx cache  /h/own (12 MiB)
self check        passed: 64 of 64 tokens equal plain decoding's, 17 of 138
                  drafted accepted in 46 rounds
"""


def report(**more: Any) -> Report:
    fields: dict[str, Any] = {
        "versions": {"dflash-mlx": "1.0", "python": "3.12.1", "mlx": "0.32.4", "mlx-lm": None},
        "tested": {"mlx": ">=0.32.2, <0.33", "mlx-lm": ">=0.32.1, <0.33"},
        "system": "macOS 15.1 arm64",
        "machine": MAC,
        "blas": None,
        "kernels": {},
        "caches": (
            Cache("hub", Path("/h/hub"), 3 * GIB),
            Cache("dflash-mlx", Path("/h/own"), 12 * 2**20),
        ),
        "check": GOOD,
        "problems": (),
    }
    return Report(**fields | more)


def test_the_report_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", report)
    result = run()
    assert (result.exit_code, result.stdout, result.stderr) == (0, PRINTED, "")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"check": None}, "self check        broke off"),
        (
            {"check": SelfCheck(64, 9, 40, 120, 24)},
            "self check        FAILED: 9 of 64 tokens equal plain decoding's, 24 of 120",
        ),
        ({"machine": None}, "device            unknown: MLX does not start"),
        ({"machine": Machine("M", "metal", 8, 6)}, "wired limit       macOS's own"),
        (
            {"machine": Machine("EPYC", "cpu", 8 * GIB, 8 * GIB), "blas": "OpenBLAS"},
            "BLAS              OpenBLAS",
        ),
        ({"machine": Machine("EPYC", "cpu", 8 * GIB, 8 * GIB)}, "memory            8.0 GiB"),
        ({"kernels": {"a": "2 to 5 rows", "b": "x"}}, "kernels           a: 2 to 5 rows; b: x"),
        ({"tested": {"mlx": None}}, "tested with       unknown: no package metadata"),
    ],
)
def test_the_report_tells(monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], line: str) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: report(**more))
    assert line in run().stdout.splitlines()


def test_problems_go_to_stderr_and_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: report(problems=("one", "two")))
    for result in (run(), run("--json")):
        assert result.exit_code == 1
        assert result.stderr == "problem: one\nproblem: two\n"
    assert json.loads(result.stdout)["problems"] == ["one", "two"]


def test_json() -> None:
    result = run("--json")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    record = json.loads(result.stdout)
    assert list(record) == [
        *("versions", "tested_versions", "system", "machine", "blas", "kernels", "caches"),
        *("self_check", "costs", "problems"),
    ]
    assert list(record["machine"]) == [
        *("name", "kind", "memory", "usable", "wired_limit", "dtype"),
    ]
    assert [list(cache) for cache in record["caches"]] == [["name", "path", "size"]] * 2
    assert record["self_check"]["passed"] is True
    assert record["problems"] == []


def test_wrong_usage_exits_2() -> None:
    assert run("--nope").exit_code == 2
    assert run("extra").exit_code == 2
