"""Runs one program and its tests; a script of its own, which `sandbox.py` starts.

    python -I -S contained.py FOLDER CONTROL REPORT

FOLDER has request.json; CONTROL and REPORT are file descriptors. A line "started" goes to REPORT,
then one JSON object that says how it ended. That the tests ran to their end is proven by a token,
which is read from CONTROL only then: while the program runs, it is not in this process.
"""

import json
import os
import resource
import sys
from types import ModuleType

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# What Python code does that touches nothing outside the interpreter. All else that the interpreter
# reports ends the process: sockets, processes, signals, files but for reading, ctypes.
HARMLESS = frozenset(
    (
        *("exec", "compile", "code.__new__", "function.__new__", "array.__new__"),
        *("marshal.loads", "marshal.load", "marshal.dumps", "pickle.find_class"),
        *("object.__getattr__", "object.__setattr__", "object.__delattr__"),
        *("sys._getframe", "sys._getframemodulename", "sys.excepthook", "sys.unraisablehook"),
        *("builtins.id", "builtins.input", "builtins.input/result"),
        *("time.sleep", "_thread.start_new_thread", "_thread.start_joinable_thread"),
        *("os.listdir", "os.scandir", "os.walk", "os.fwalk", "glob.glob", "glob.glob/2"),
        *("sys.set_asyncgen_hooks_firstiter", "sys.set_asyncgen_hooks_finalizer"),
    )
)
# Modules in C that act outside the interpreter without reporting it.
FORBIDDEN_MODULES = frozenset(
    (
        *("ctypes", "_ctypes", "_posixsubprocess", "_testcapi", "_testinternalcapi"),
        *("_dbm", "_gdbm", "_sqlite3"),
    )
)


def main() -> None:
    folder, control, report = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with open(os.path.join(folder, "request.json"), encoding="ascii") as file:
        request = json.load(file)
    seal_files()
    limit(request["seconds"], request["bytes"])
    # The program may replace what it can reach by name, so these are taken hold of before.
    read, write, leave, dumps, describe = os.read, os.write, os._exit, json.dumps, one_line
    watch(report)
    write(report, b"started\n")  # what fails before this line is no fault of the program
    try:
        run(request["program"], request["tests"])
    except BaseException as error:  # SystemExit too: the tests did not run to their end
        ended = {"failed": describe(error)}
    else:
        ended = {"token": read(control, 64).decode()}
    write(report, dumps(ended).encode() + b"\n")
    leave(0)


def run(program: str, tests: str) -> None:
    """The program and then its tests, in one namespace, which is a module and not __main__."""
    module = ModuleType("program")
    sys.modules["program"] = module
    sys.argv = ["program"]
    exec(compile(program, "program", "exec"), module.__dict__)
    exec(compile(tests, "tests", "exec"), module.__dict__)


def one_line(error: BaseException) -> str:
    """The kind of an error and the start of its text."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}"[:200]


def seal_files() -> None:
    """On Linux from now on no file can be written, made, removed or executed, where the kernel has
    Landlock; system calls by number, as C libraries have no names for them."""
    if sys.platform != "linux":
        return
    import ctypes

    system = ctypes.CDLL(None)
    version = system.syscall(444, None, ctypes.c_size_t(0), 1)  # landlock_create_ruleset
    if version >= 1:
        acts = ctypes.c_uint64(0b1_1111_1111_0011 | (version > 1) << 13 | (version > 2) << 14)
        rules = system.syscall(444, ctypes.byref(acts), ctypes.c_size_t(8), 0)
        system.prctl(38, *(ctypes.c_ulong(n) for n in (1, 0, 0, 0)))  # PR_SET_NO_NEW_PRIVS
        system.syscall(446, rules, 0)  # landlock_restrict_self
        os.close(rules)
    for name in [name for name in sys.modules if "ctypes" in name]:
        del sys.modules[name]  # so that a program has to import it, which ends it


def limit(seconds: int, size: int) -> None:
    """Ask the system for limits; those that it does not have are left out."""
    wanted = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: size,
        resource.RLIMIT_DATA: size,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):
            continue


def watch(report: int) -> None:
    """From now on, end the process at the first act that is not harmless; there is no way back."""
    import _posixsubprocess

    # It starts processes without a word; subprocess, which others import, takes its name from it.
    _posixsubprocess.fork_exec = None  # type: ignore[assignment]
    harmless, forbidden, writing = HARMLESS, FORBIDDEN_MODULES, WRITING
    write, leave = os.write, os._exit

    def hook(event, arguments):  # type: ignore[no-untyped-def]
        if event in harmless:
            return
        if event == "open" and not arguments[2] & writing:
            return
        if event == "import" and arguments[0] not in forbidden:
            return
        write(report, b'{"refused": "%s"}\n' % event.encode())
        leave(1)

    sys.addaudithook(hook)


main()
