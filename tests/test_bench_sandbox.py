"""Programs that mean harm, each tried so that it would do none here even if nothing held it."""

import os
import socket
import sys

import pytest

from dflash_mlx.bench.data import sandbox
from dflash_mlx.bench.data.sandbox import NOTHING, containment, run_program
from dflash_mlx.errors import UnsupportedError


def listening() -> socket.socket:
    """A server, to be closed, that only notes who comes."""
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    return server


def port(listener: socket.socket) -> int:
    return listener.getsockname()[1]


def visited(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_a_program_and_its_tests_share_a_namespace():
    outcome = run_program("def f(x):\n    return x + 1\n", tests="assert f(1) == 2\n")
    assert (outcome.passed, outcome.ended, outcome.detail) == (True, "passed", "")
    outcome = run_program("def f(x):\n    return x\n", tests="assert f(1) == 2, 'no'\n")
    assert (outcome.passed, outcome.ended, outcome.detail) == (
        *(False, "failed"),
        "AssertionError: no",
    )


def test_what_solutions_use_is_harmless():
    modules = (
        "abc array asyncio bisect calendar cmath collections copy csv dataclasses datetime decimal "
        "enum fractions functools hashlib heapq inspect io itertools json math operator pathlib "
        "pickle queue random re statistics string struct subprocess sys textwrap threading time "
        "traceback types typing unittest uuid"
    )
    program = f"import {', '.join(modules.split())}\n" + (
        "@dataclasses.dataclass\n"
        "class A:\n"
        "    x: 'int' = 1\n"
        "P = collections.namedtuple('P', 'a b')\n"
        "E = enum.Enum('E', 'one two')\n"
        "assert pickle.loads(pickle.dumps(A(2))).x == 2 and copy.deepcopy(P(1, 2)).b == 2\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.format_exc()\n"
        "time.sleep(0.001); random.seed(1); id(A); open(re.__file__).read()\n"
        "async def f(): return 1\n"
        "print('x' * 10**7)\n"
    )
    assert run_program(program).ended == "passed"


def test_a_main_block_is_not_run():
    assert run_program("if __name__ == '__main__':\n    raise SystemExit\n").passed


@pytest.mark.parametrize(
    ("program", "ended"),
    [
        ("import sys; sys.exit(0)", "failed"),
        ("raise SystemExit", "failed"),
        ("raise KeyboardInterrupt", "failed"),
        ("import os; os._exit(0)", "died"),
        ("import os; os.close(1); os._exit(0)", "died"),
        (
            "import atexit, os; atexit.register(os._exit, 0); quit = exit = 1; raise SystemExit",
            "failed",
        ),
        ("class E(Exception):\n def __str__(self): raise SystemExit\nraise E", "failed"),
        ("def f():\n    return f()\nf()", "failed"),
        ("def (", "failed"),
        ("\x00", "failed"),
        ("'\ud800'", "failed"),
        ("input()", "failed"),
    ],
)
def test_an_early_end_is_no_success(program, ended):
    assert run_program(program, tests="assert True").ended == ended


@pytest.mark.parametrize("end", ["", "os._exit(0)"])
@pytest.mark.parametrize("line", ['{"token": ""}', '{"token": "%032d"}', '"token"', "[]", "{}"])
def test_a_forged_report_is_no_success(line, end):
    program = f"""
import os
for descriptor in range(3, 4096):
    try:
        os.write(descriptor, {line!r}.encode() + b"\\n")
    except OSError:
        pass
{end}
"""
    assert run_program(program).ended == "died"


def test_the_token_is_in_no_frame_while_the_program_runs():
    program = """
import re, sys
found, frame = [], sys._getframe()
while frame:
    found += re.findall(r"\\b[0-9a-f]{32}\\b", repr(frame.f_locals) + repr(frame.f_globals))
    frame = frame.f_back
assert found, "nothing"
"""
    assert run_program(program).detail == "AssertionError: nothing"


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)"])
@pytest.mark.parametrize("where", ["program", "tests"])
def test_an_endless_program_is_ended(program, where):
    given = {"source": program} if where == "program" else {"source": "", "tests": program}
    outcome = run_program(**given, seconds=0.5)
    assert (outcome.passed, outcome.ended) == (False, "time")


def test_one_that_holds_on_to_everything_is_ended():
    program = "while True:\n  try:\n    while True: pass\n  except BaseException: pass"
    assert run_program(program, seconds=0.5).ended == "time"


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not limit memory by setrlimit")
def test_memory_is_limited():
    outcome = run_program("x = bytearray(2**30)", memory_mb=256)
    assert (outcome.ended, outcome.detail) == ("failed", "MemoryError: ")


@pytest.mark.parametrize(
    "act",
    [
        "os.fork()",
        "os.forkpty()",
        "os.system('true')",
        "os.popen('true')",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.kill(os.getppid(), 0)",
        "os.killpg(0, 0)",
        "import subprocess; subprocess.run(['true'])",
        "import multiprocessing as m; m.get_context('fork').Process(target=print).start()",
        "import pty; pty.spawn('true')",
        "import ctypes",
        "import _ctypes",
        "import sqlite3",
        "import gc; gc.get_objects()",
        "import socket; socket.socket()",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import urllib.request as u; u.urlopen('http://127.0.0.1:9')",
        "import asyncio; asyncio.run(asyncio.sleep(0))",  # its loop makes a pair of sockets
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))",
        "import tempfile; tempfile.TemporaryFile()",
    ],
)
def test_the_first_act_outside_ends_the_program(act):
    hidden = f"import os\ntry:\n    {act}\nexcept BaseException:\n    pass\n"
    outcome = run_program(hidden)
    assert (outcome.passed, outcome.ended) == (False, "refused")


def test_the_silent_way_to_a_process_is_closed():
    program = "import _posixsubprocess as p; p.fork_exec([b'true'], [b'/bin/true'])"
    assert run_program(program).detail.startswith("TypeError: 'NoneType'")


def test_what_the_hook_needs_cannot_be_taken_from_it():
    program = """
import builtins, json, os, sys
main = sys.modules["__main__"]
main.HARMLESS = main.FORBIDDEN_MODULES = main.WRITING = None
os.write = os._exit = json.dumps = builtins.isinstance = builtins.len = print
os.fork()
"""
    assert run_program(program).detail == "os.fork"


@pytest.mark.parametrize(
    "act",
    [
        "open(new, 'w')",
        "open(old, 'a')",
        "open(old, 'r+')",
        "os.open(new, os.O_CREAT | os.O_WRONLY)",
        "os.open(old, os.O_RDONLY | os.O_TRUNC)",
        "pathlib.Path(new).write_text('x')",
        "pathlib.Path(new).touch()",
        "os.remove(old)",
        "os.rename(old, new)",
        "os.truncate(old, 0)",
        "os.mkdir(new)",
        "os.symlink(old, new)",
        "os.link(old, new)",
        "os.chmod(old, 0)",
        "os.utime(old, (0, 0))",
        "shutil.rmtree(os.path.dirname(old))",
        "shutil.copy(old, new)",
    ],
)
def test_files_stay_as_they_are(act, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("precious")
    before = old.stat()
    program = f"import os, pathlib, shutil\nold, new = {str(old)!r}, {str(new)!r}\n{act}\n"
    assert run_program(program).ended == "refused"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    after = old.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert old.read_text() == "precious"


def test_the_network_is_out_of_reach():
    with listening() as listener:
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port(listener)}))"
        assert run_program(program).ended == "refused"
        assert not visited(listener)


def test_the_environment_and_third_party_packages_are_not_there(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert run_program("import os\nassert 'HF_TOKEN' not in os.environ").passed
    assert run_program("import rich").detail.startswith("ModuleNotFoundError")


def test_nothing_stays_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    before = len(os.listdir("/dev/fd"))
    for program in ("x = 1", "while True: pass", "import os; os._exit(3)"):
        run_program(program, seconds=0.3)
    assert len(os.listdir("/dev/fd")) == before
    assert list(tmp_path.iterdir()) == []


def test_an_interpreter_that_does_not_start_is_no_wrong_answer(monkeypatch):
    monkeypatch.setattr(sandbox, "_python", lambda: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(UnsupportedError, match=r"code cannot be run here: .* did not start"):
        run_program("x = 1")


def test_a_way_that_does_not_work_is_not_taken(monkeypatch):
    broken = sandbox.Containment("broken", ("/nonexistent/tool",))
    monkeypatch.setattr(sandbox, "WAYS", {sys.platform: (broken,)})
    assert containment.__wrapped__() == NOTHING
