"""Compiles kernels, the runtime and the precompiled header; everything is cached by content.

A result's name is the hash of all that went into it: text, flags, the stand-in headers, the
compiler's version and MLX's version.  Nothing is ever rebuilt or stale, and processes may share the
folder: a file appears under its name only when it is complete.

Three builds of a kernel exist: `fast`; `checked`, in which every memory access calls the runtime
(ThreadSanitizer's instrumentation without its library); and `coverage`, which counts lines.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import getpass
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from .rewrite import RewriteError, rewrite

HERE = Path(__file__).parent
SHIM = HERE / "shim"
RUNTIME = HERE / "runtime"
OLDEST_GCC = 12  # the first with _Float16 in C++ on x86-64

COMMON = (
    *("-std=gnu++17", "-fPIC", "-g1", "-w", "-fno-exceptions", "-fno-rtti"),
    # Metal's own rules: literals are float, pointers may alias, endless loops stay.
    *("-fsingle-precision-constant", "-fno-strict-aliasing", "-fno-finite-loops"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-threadsafe-statics"),
    *("-fstack-clash-protection", "-fsanitize=bounds,shift-exponent,integer-divide-by-zero"),
)
MODES = {
    "fast": ("-O2",),
    "checked": (
        *("-O2", "-fsanitize=thread,alignment", "--param=tsan-instrument-func-entry-exit=0"),
        # Accesses must stay what the source says.
        *("-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-fno-store-merging"),
        *("-fno-tree-loop-distribute-patterns", "-ftrivial-auto-var-init=pattern"),
    ),
    "coverage": ("-O0", "--coverage"),
}
PREFIX = """#include "metal_cpu/all.h"
#include "mlx/backend/metal/kernels/utils.h"
#include "metal_cpu/entry.h"
"""


class CompilerMissing(RuntimeError):
    """No g++ of a sufficient version: kernels cannot be run, and their tests must not pass."""


class KernelBuildError(RuntimeError):
    """The kernel does not compile; the message is the compiler's, with the kernel's lines."""


@functools.cache
def compiler() -> tuple[str, str]:
    """Path and version text of a GNU C++ compiler.  Raises CompilerMissing."""
    for name in ("g++", *(f"g++-{n}" for n in range(20, OLDEST_GCC - 1, -1))):
        path = shutil.which(name)
        if path is None:
            continue
        text = _output([path, "--version"]).splitlines()[0]
        number = _output([path, "-dumpversion"]).split(".")[0].strip()
        if "clang" not in text.lower() and number.isdigit() and int(number) >= OLDEST_GCC:
            return path, text
    raise CompilerMissing(
        f"running Metal kernels on the CPU needs GNU g++ {OLDEST_GCC} or later on the PATH "
        "(clang, also under the name g++, will not do): install it, for instance "
        "`apt install g++`; on a Mac run the tests on Metal itself"
    )


@functools.cache
def mlx_include() -> Path:
    """The folder of MLX's own Metal headers, out of the installed package."""
    import mlx.core

    places = [Path(p) / "include" for p in sys.modules["mlx"].__path__]
    for place in (*places, Path(mlx.core.__file__).parent / "include"):
        if (place / "mlx/backend/metal/kernels/utils.h").is_file():
            return place
    raise FileNotFoundError(f"no Metal headers of MLX under {places}: reinstall mlx")


@functools.cache
def cache_folder() -> Path:
    """A private folder for build results under the system's temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"metal_cpu-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@functools.lru_cache(maxsize=1024)
def build_kernel(text: str, mode: str, contract: bool) -> Path:
    """Shared library of a whole translation unit (without the prefix).

    Raises KernelBuildError with the compiler's errors.
    """
    flags = _flags(mode, contract)
    prefix = _prefix(mode, contract)
    target = cache_folder() / f"{_key(text, *flags, prefix.name)}.so"
    with _alone(target):
        if not target.exists():
            _build(text, target, [*flags, "-include", str(prefix / "prefix.h"), *_includes()])
    return target


def _build(text: str, target: Path, flags: list[str]) -> None:
    counting = "--coverage" in flags
    with _work_folder() as work:
        (work / "kernel.cpp").write_text(text)
        home = work
        if counting:  # the notes for gcov stay, and name the place of the object
            home = target.with_suffix("")
            home.mkdir(exist_ok=True)
        unit, done = home / "kernel.o", work / "kernel.so"
        _compile([*flags, "-c", str(work / "kernel.cpp"), "-o", str(unit)])
        link = ["--coverage"] if counting else []
        if sys.platform == "darwin":
            link += ["-undefined", "dynamic_lookup"]
        _compile(["-shared", *link, str(unit), "-o", str(done)])
        os.replace(done, target)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time builds a thing."""
    locks = cache_folder() / "locks"
    locks.mkdir(exist_ok=True)
    with open(locks / target.name, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def build_runtime() -> Path:
    """The runtime as a shared library."""
    sources = sorted(RUNTIME.glob("*.cpp"))
    flags = ["-std=gnu++17", "-O2", "-g1", "-fPIC", "-shared", "-U_FORTIFY_SOURCE"]
    texts = [p.read_text() for p in sorted(RUNTIME.iterdir()) if p.suffix in {".h", ".cpp"}]
    target = cache_folder() / f"runtime-{_key(*texts, *flags)}.so"
    with _alone(target), _work_folder() as work:
        if not target.exists():
            done = work / "runtime.so"
            _compile([*flags, *map(str, sources), "-o", str(done), "-ldl", "-lpthread"])
            os.replace(done, target)
    return target


@functools.cache
def rewritten_headers() -> Path:
    """MLX's kernel headers with their threadgroup variables rewritten (see rewrite.py).

    A header that cannot be rewritten becomes an #error, so that only its users notice.
    """
    root = mlx_include()
    texts = {p: p.read_text() for p in sorted(root.glob("mlx/backend/metal/kernels/**/*.h"))}
    key = _key(*texts.values(), (HERE / "rewrite.py").read_text())
    target = cache_folder() / f"mlx-{key}"
    with _alone(target), _work_folder() as work:
        if target.exists():
            return target
        for path, text in texts.items():
            to = work / "include" / path.relative_to(root)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(f'#line 1 "{path.name}"\n' + _rewritten(text, path.name))
        os.rename(work / "include", target)
    return target


def _rewritten(text: str, name: str) -> str:
    try:
        return rewrite(text, name)
    except RewriteError as error:
        return f'#error "{error}"\n'


@functools.cache
def _prefix(mode: str, contract: bool) -> Path:
    """A folder with prefix.h and its precompiled form for these flags."""
    flags = _flags(mode, contract)
    key = _key(PREFIX, _shim_text(), *flags, str(rewritten_headers()))
    target = cache_folder() / f"prefix-{key}"
    with _alone(target), _work_folder() as work:
        if target.exists():
            return target
        folder = work / "prefix"
        folder.mkdir()
        (folder / "prefix.h").write_text(PREFIX)
        made = str(folder / "prefix.h.gch")
        plain = [f for f in flags if f != "--coverage"]
        _compile([*plain, *_includes(), "-x", "c++-header", str(folder / "prefix.h"), "-o", made])
        os.rename(folder, target)
    return target


def _flags(mode: str, contract: bool) -> tuple[str, ...]:
    fused = "fast" if contract else "off"
    return (*COMMON, *MODES[mode], *_machine_flags(), f"-ffp-contract={fused}")


@functools.cache
def _machine_flags() -> tuple[str, ...]:
    """Hardware conversion to half and fused multiply-add where the processor has them."""
    number = int(_output([compiler()[0], "-dumpversion"]).split(".")[0])
    rounding = ["-fexcess-precision=16"] if number >= 13 and _is_x86() else []
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() and _is_x86() else set()
    return (*rounding, *(f"-m{w}" for w in ("f16c", "fma", "avx2") if w in words))


def _is_x86() -> bool:
    return os.uname().machine in {"x86_64", "amd64"}


def _includes() -> list[str]:
    return ["-I", str(SHIM), "-I", str(rewritten_headers())]


@functools.cache
def _shim_text() -> str:
    return "".join(f"{p.name}\n{p.read_text()}" for p in sorted(SHIM.rglob("*")) if p.is_file())


def _key(*parts: str) -> str:
    version = importlib.metadata.version("mlx")
    text = "\0".join((*parts, compiler()[1], version))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@contextlib.contextmanager
def _work_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="work-") as folder:
        yield Path(folder)


def _compile(arguments: Sequence[str]) -> None:
    done = subprocess.run([compiler()[0], *arguments], capture_output=True, text=True)
    if done.returncode:
        raise KernelBuildError(_errors(done.stderr))


def _errors(text: str) -> str:
    """The compiler's errors with the lines they name, without the notes."""
    kept = [x for x in text.splitlines() if re.search(r"error:|required from|In instantiation", x)]
    return "\n".join(kept[:20]) or text[-2000:]


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout or " "
