"""What each layer around a program holds by itself, without the interpreter's hook.

All that is tried here would do no harm even if nothing held it.
"""

import ast
import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dflash_mlx.bench.data import sandbox
from dflash_mlx.bench.data.sandbox import NOTHING, containment, run_program

from .test_bench_sandbox import listening, port, visited

by_the_system = pytest.mark.skipif(
    containment() == NOTHING, reason="the system has no way here that needs no privileges"
)
BEFORE_HOOK = """
import json, os, socket, sys, time
report = int(sys.argv[3])
os.write(report, b"started\\n")
def say(text):
    os.write(report, json.dumps({"failed": text}).encode() + b"\\n")
"""


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Runs a script in the place of contained.py: what holds it is not the interpreter's hook."""

    def run(source: str, *, seconds: float = 20.0, memory_mb: int = 1024) -> sandbox.Outcome:
        script = tmp_path / "bare.py"
        script.write_text(BEFORE_HOOK + source)
        monkeypatch.setattr(sandbox, "SCRIPT", script)
        return run_program("", seconds=seconds, memory_mb=memory_mb)

    return run


def alive(marker: str) -> bool:
    listed = subprocess.run(
        ["ps", "-axww", "-o", "args="], capture_output=True, text=True, check=True
    )
    return any(marker in line for line in listed.stdout.splitlines())


def test_memory_is_watched_where_it_is_not_limited(bare):
    outcome = bare("x = b'x' * (300 * 2**20)\ntime.sleep(60)", memory_mb=100)
    assert (outcome.passed, outcome.ended) == (False, "memory")


def part_of_contained(name: str) -> str:
    """The source of one function of contained.py."""
    source = Path(sandbox.__file__).with_name("contained.py").read_text()
    return next(
        ast.unparse(node)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )


def test_no_file_can_grow(tmp_path, bare):
    limits = part_of_contained("limit")
    target = tmp_path / "grown"
    outcome = bare(
        f"import resource\n{limits}\nlimit(5, 2**30)\n"
        f"try:\n    os.write(os.open({str(target)!r}, os.O_WRONLY | os.O_CREAT), b'x')\n"
        "except OSError as error:\n    say(repr(error))"
    )
    assert not target.exists() or target.stat().st_size == 0
    assert "Error" in outcome.detail


@by_the_system
def test_the_system_keeps_the_network_out_of_reach(bare):
    with listening() as listener:
        outcome = bare(
            f"try:\n    socket.create_connection(('127.0.0.1', {port(listener)}), 5)\n"
            "except OSError as error:\n    say(repr(error))\nelse:\n    say('connected')"
        )
        assert not visited(listener)
    assert "Error" in outcome.detail


@by_the_system
def test_the_system_hides_other_processes(bare):
    outcome = bare(
        f"try:\n    os.kill({os.getpid()}, 0)\n"
        "except OSError as error:\n    say(type(error).__name__)\nelse:\n    say('reached')"
    )
    assert outcome.detail in ("ProcessLookupError", "PermissionError")


def has_landlock() -> bool:
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) >= 1


@pytest.mark.skipif(not has_landlock(), reason="a matter of Landlock")
@pytest.mark.parametrize(
    "act",
    [
        "open(old, 'w')",
        "open(old, 'a')",
        "os.open(new, os.O_CREAT)",
        "os.truncate(old, 0)",
        "os.remove(old)",
        "os.rename(old, new)",
        "os.link(old, new)",
        "os.symlink(old, new)",
        "os.mkdir(new)",
        "os.mkfifo(new)",
        "os.execv('/bin/sh', ['sh', '-c', ':'])",
    ],
)
def test_landlock_keeps_files_as_they_are(act, bare, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("precious")
    outcome = bare(
        f"{part_of_contained('seal_files')}\nseal_files()\nold, new = {str(old)!r}, {str(new)!r}\n"
        f"try:\n    {act}\nexcept OSError as error:\n    say(type(error).__name__)\n"
    )
    assert outcome.detail == "PermissionError"
    assert old.read_text() == "precious"
    assert not new.exists()


@pytest.mark.skipif(not has_landlock(), reason="a matter of Landlock")
def test_files_that_the_hook_does_not_see_are_not_made(tmp_path):
    outcome = run_program(f"import os\nos.mkfifo({str(tmp_path / 'new')!r})")
    assert outcome.detail.startswith("PermissionError")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "darwin", reason="a matter of sandbox-exec")
def test_the_system_keeps_files_as_they_are(bare, tmp_path):
    outcome = bare(
        f"try:\n    open({str(tmp_path / 'new')!r}, 'w')\n"
        "except OSError as error:\n    say(type(error).__name__)\nelse:\n    say('written')"
    )
    assert outcome.detail == "PermissionError"


@pytest.mark.parametrize("leave", ["", pytest.param("os.setsid()", marks=by_the_system)])
def test_whatever_it_started_ends_with_it(bare, tmp_path, monkeypatch, leave):
    source = f"""
try:
    for _ in range(5):
        if os.fork() == 0:
            {leave}
            time.sleep(60)
            os._exit(0)
except OSError:
    pass
time.sleep(60)
"""
    if not leave:  # then its group is enough to find them all
        monkeypatch.setattr(sandbox, "containment", lambda: NOTHING)
    outcome = bare(source, seconds=1.0)
    assert outcome.ended == "time"
    deadline = time.monotonic() + 20
    while alive(str(tmp_path / "bare.py")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(str(tmp_path / "bare.py"))


def test_an_interruption_ends_the_program(bare, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sandbox, "_follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bare("time.sleep(60)")
    assert not alive(str(tmp_path / "bare.py"))
