"""Runs code that a model wrote, in a process of its own that can do no harm.

Layers, from the outside; each holds by itself, and none is perfect:

1. The system, where it offers a way without privileges. On macOS a `sandbox-exec` profile: no
   network, no writing to files, no new process, no signal to another one. On Linux `unshare`: a
   network without interfaces, and a process space of its own, which hides all others and ends as
   a whole; and Landlock, if the kernel has it: no file is written, made, removed or executed.
   `containment()` says which of the two commands works here.
2. Limits of the process (setrlimit): seconds of CPU, memory, no new process, no growing file.
   macOS does not limit memory that way, and root on Linux may start processes; so the parent also
   adds up the memory of the process group, and ends the whole group when the program is done, or
   its time or memory is.
3. The interpreter's audit hook, which cannot be removed: the first socket, process, signal, write
   or use of ctypes ends the program. It covers what Python code does through the standard library;
   a program that finds a fault in the interpreter itself gets past it, to the layers above.

The program sees no environment but the search paths, no input and no third-party packages. It may
read files that the user can read, but has no way to send what it reads anywhere.

Success is a token that reaches the process after the tests. A program that exits early, prints or
hides an exception has none; one written against this very module could fetch it, and would gain
nothing but the score of one answer.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ...errors import UnsupportedError

Ended = Literal["passed", "failed", "refused", "time", "memory", "died"]

SCRIPT = Path(__file__).with_name("contained.py")
STARTING = 60.0  # seconds that a busy machine has to start the interpreter
POLL = 0.25  # seconds between looks at the memory
LONGEST = 10_000  # bytes of a report
KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
PROFILE = (
    "(version 1)(allow default)(deny network*)(deny process-fork)"
    '(deny file-write*)(allow file-write-data (literal "/dev/null"))'
    "(deny signal)(allow signal (target self))"
)
UNSHARE = ("unshare", "--user", "--map-root-user", "--net")


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        ended: passed; failed by an exception; refused for what it tried; out of time or memory; or
            died without a word.
        detail: the exception, or what was tried.
        seconds: from start to end.
    """

    ended: Ended
    detail: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the program and its tests ran to their end."""
        return self.ended == "passed"


@dataclass(frozen=True)
class Containment:
    """What the system adds: a name for it, and the command that it is put in front of."""

    name: str
    prefix: tuple[str, ...]


WAYS = {
    "darwin": (Containment("sandbox-exec", ("/usr/bin/sandbox-exec", "-p", PROFILE)),),
    "linux": (
        Containment(
            "unshare, network and processes", (*UNSHARE, "--pid", "--fork", "--kill-child", "--")
        ),
        Containment("unshare, network", (*UNSHARE, "--")),
    ),
}
NOTHING = Containment("limits and audit hook alone", ())


@cache
def containment() -> Containment:
    """The first of the system's ways that works here."""
    return next((way for way in WAYS.get(sys.platform, ()) if _works(way)), NOTHING)


def run_program(
    source: str, *, tests: str = "", seconds: float = 10.0, memory_mb: int = 1024
) -> Outcome:
    """Run a program, then tests in the same namespace, contained.

    Raises:
        UnsupportedError: no interpreter could be started, which says nothing of the program.
    """
    token = secrets.token_hex(16)
    request = {
        "program": source,
        "tests": tests,
        "seconds": int(seconds) + 1,
        "bytes": memory_mb * 2**20,
    }
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dflash-mlx-") as folder:
        Path(folder, "request.json").write_text(json.dumps(request), encoding="ascii")
        with _started(folder, token) as (process, report):
            ended, detail = _follow(process, report, token, seconds, memory_mb)
    return Outcome(ended, detail, time.monotonic() - began)


@contextmanager
def _started(folder: str, token: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The process, and the descriptor that it reports to; ended with all it started."""
    control, give = os.pipe()
    report, reported = os.pipe()
    command = [*containment().prefix, *_python(), str(SCRIPT), folder, str(control), str(reported)]
    os.write(give, token.encode())
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(),
            pass_fds=(control, reported),
            start_new_session=True,
        )
        os.close(reported)
        reported = -1
        try:
            yield process, report
        finally:
            _end(process)
    finally:
        for descriptor in (control, give, report, reported):
            if descriptor >= 0:
                os.close(descriptor)


def _end(process: subprocess.Popen[bytes]) -> None:
    # macOS says PermissionError where all of the group has ended.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _follow(
    process: subprocess.Popen[bytes], report: int, token: str, seconds: float, memory_mb: int
) -> tuple[Ended, str]:
    """Read reports until the last one, or until there is a reason not to wait for it."""
    received = b""
    deadline = time.monotonic() + STARTING
    with selectors.DefaultSelector() as waiting:
        waiting.register(report, selectors.EVENT_READ)
        while received.count(b"\n") < 2 and len(received) < LONGEST:
            left = deadline - time.monotonic()
            if left <= 0:
                return _out_of_time(received)
            if waiting.select(min(left, POLL)):
                chunk = os.read(report, LONGEST)
                if not received and chunk:
                    deadline = time.monotonic() + seconds
                received += chunk
                if not chunk:
                    break
            elif _resident(process.pid) > memory_mb * 2**20:
                return "memory", f"over {memory_mb} MB"
    return _verdict(received, token)


def _out_of_time(received: bytes) -> tuple[Ended, str]:
    if not received:
        raise _no_start()
    return "time", "still running"


def _verdict(received: bytes, token: str) -> tuple[Ended, str]:
    started, _, last = received.partition(b"\n")
    if started != b"started":
        raise _no_start()
    try:
        said = json.loads(last)
    except ValueError:
        return "died", "it ended without a report"
    match said:
        case {"token": str(given)} if secrets.compare_digest(given.encode(), token.encode()):
            return "passed", ""
        case {"failed": str(text)}:
            return "failed", text
        case {"refused": str(text)}:
            return "refused", text
    return "died", "its report is not one"


def _no_start() -> UnsupportedError:
    return UnsupportedError(
        f"code cannot be run here: {sys.executable} did not start under {containment().name!r}; "
        "leave out --run-code"
    )


def _resident(group: int) -> int:
    """Bytes of memory that a process group holds; 0 where `ps` does not say."""
    try:
        listed = subprocess.run(
            ["ps", "-axo", "pgid=,rss="], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    rows = [line.split() for line in listed.stdout.splitlines()]
    return sum(int(row[1]) * 1024 for row in rows if len(row) == 2 and row[0] == str(group))


def _works(way: Containment) -> bool:
    try:
        command = [*way.prefix, *_python(), "-c", ""]
        tried = subprocess.run(command, capture_output=True, timeout=STARTING, env=_environment())
    except (OSError, subprocess.SubprocessError):
        return False
    return tried.returncode == 0


def _python() -> list[str]:
    """Isolated from the environment and from site-packages."""
    return [sys.executable, "-I", "-S", "-B"]


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in KEPT if name in os.environ}
