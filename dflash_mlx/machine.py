"""What this machine is: device, memory, operating system, versions, BLAS.

MLX is imported only where it alone knows the answer: on a Mac, and on Linux beside its CUDA part.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

PACKAGES = ("mlx", "mlx-lm", "huggingface_hub", "transformers")
TESTED = ("mlx", "mlx-lm")  # whose range matters: their insides are used, or their kernels
CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Machine:
    """Where models would run.

    Attributes:
        kind: metal, cuda or cpu.
        memory: bytes of the device: unified on a Mac, the GPU's with CUDA, else RAM.
        usable: bytes that models should stay under: Metal's recommendation, else `memory`.
        wired_limit: bytes macOS lets a GPU wire, where a user has set that (iogpu.wired_limit_mb).
    """

    name: str
    kind: str
    memory: int
    usable: int
    wired_limit: int | None = None

    @property
    def dtype(self) -> str:
        """What 16-bit models compute in here unless told otherwise."""
        return "float32" if self.kind == "cpu" else "bfloat16"

    @property
    def itemsize(self) -> int:
        """Bytes of an element of that type."""
        return 4 if self.kind == "cpu" else 2


def this_machine() -> Machine:
    """The device MLX computes on by default."""
    if sys.platform == "darwin" or _has("mlx-cuda-13") or _has("mlx-cuda-12"):
        return _asked()
    ram = _ram()
    return Machine(_processor(), "cpu", ram, ram)


def versions() -> dict[str, str | None]:
    """Versions of what an answer depends on; None for what is not installed."""
    from . import __version__

    packages = {name: version(name) if _has(name) else None for name in PACKAGES}
    return {"dflash-mlx": __version__, "python": platform.python_version(), **packages}


def system() -> str:
    """The operating system, its version and the processor's architecture."""
    name, release = platform.system(), platform.release()
    if sys.platform == "darwin":
        name, release = "macOS", platform.mac_ver()[0]
    return f"{name} {release} {platform.machine()}"


def tested_range(package: str) -> str | None:
    """The versions of a package that this one was tested with, as its metadata has them."""
    try:
        needed = requires("dflash-mlx") or []
    except PackageNotFoundError:
        return None
    for line in needed:
        name, _, rest = line.partition(";")
        match = re.fullmatch(r"([\w.-]+)(?:\[[^]]*\])?\s*(.*)", name.strip())
        if match and match[1].replace("_", "-") == package and "extra" not in rest:
            return ", ".join(sorted(match[2].split(","), reverse=True))
    return None


def in_range(found: str, wanted: str) -> bool:
    """Whether a version like 0.32.4 lies in a range like >=0.32.1,<0.33."""
    tests = {
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
        "<": lambda a, b: a < b,
        ">": lambda a, b: a > b,
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
    }
    clauses = re.findall(r"(>=|<=|==|!=|<|>)\s*([\w.]+)", wanted)
    return all(tests[sign](_numbers(found), _numbers(bound)) for sign, bound in clauses)


def blas() -> str | None:
    """Which BLAS MLX's CPU backend calls on Linux; None elsewhere.

    The forwarding library of `blas.py` is only ever loaded in front of MLX's own.
    """
    if sys.platform != "linux":
        return None
    try:
        loaded = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    found = re.search(r"/blas-[0-9a-f]{16}\.so$", loaded, re.MULTILINE)
    slow = "the reference one, slow: OpenBLAS needs scipy-openblas32 and a C compiler"
    return "OpenBLAS" if found else slow


def _asked() -> Machine:
    """What MLX itself says."""
    import mlx.core as mx

    if mx.default_device().type == mx.cpu:
        return Machine(_processor(), "cpu", _ram(), _ram())
    info = mx.device_info()
    kind = "metal" if mx.metal.is_available() else "cuda"
    memory = int(info.get("memory_size") or info.get("total_memory") or _ram())
    usable = int(info.get("max_recommended_working_set_size") or memory)
    return Machine(str(info.get("device_name", kind)), kind, memory, usable, _wired_limit())


def _wired_limit() -> int | None:
    if sys.platform != "darwin":
        return None
    command = ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return int(done.stdout) * 2**20 or None  # 0: the system chooses
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _ram() -> int:
    """Installed memory, or what the container may use of it."""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(ram, int(CGROUP.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no such file, or "max"
        return ram


def _has(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    """0.32.4.dev1 -> (0, 32, 4), without zeros at the end."""
    head = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(part) for part in head[0].split(".")] if head else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
