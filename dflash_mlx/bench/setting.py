"""Where a benchmark ran, and how fast memory is there."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import mlx.core as mx

from ..errors import UnsupportedError
from ..machine import system, this_machine, versions

COPY_BYTES = 2**29
COPIES = 8
REPEAT = 7
ENOUGH = 1.0  # seconds
CORES = ["/usr/sbin/system_profiler", "SPDisplaysDataType"]


@dataclass(frozen=True)
class Setting:
    """A machine.

    Attributes:
        cores: of the GPU; None where the system does not say.
        copy_gb_s: gigabytes per second, read and written, of a plain copy much larger than caches.
    """

    device: str
    kind: str
    cores: int | None
    system: str
    versions: dict[str, str | None]
    copy_gb_s: float

    def as_dict(self) -> dict[str, Any]:
        """In the form of `--json`."""
        return {
            "device": self.device,
            "kind": self.kind,
            "gpu_cores": self.cores,
            "system": self.system,
            "versions": self.versions,
            "copy_gb_s": float(f"{self.copy_gb_s:.4g}"),
        }


def need_metal() -> None:
    """Refuse where kernels cannot run.

    Raises:
        UnsupportedError: MLX has no Metal here.
    """
    if not mx.metal.is_available():
        raise UnsupportedError(
            "no Metal GPU here; the kernels need a Mac with Apple Silicon. "
            "--reference times their plain MLX references instead"
        )


def this_setting(small: bool) -> Setting:
    """This machine; the copy is timed now."""
    machine = this_machine()
    copied = copy_speed(COPY_BYTES // 512 if small else COPY_BYTES)
    return Setting(machine.name, machine.kind, gpu_cores(), system(), versions(), copied / 1e9)


def copy_speed(size: int) -> float:
    """Bytes per second that a chain of copies of so many bytes reads and writes."""
    source = mx.zeros(size // 4, mx.uint32)
    seconds: list[float] = []
    while len(seconds) <= REPEAT and sum(seconds[1:]) * COPIES < ENOUGH:
        copied = source
        for _ in range(COPIES):
            copied = copied + 1  # a copy that MLX does not leave out
        began = time.perf_counter()
        mx.eval(copied)
        seconds.append((time.perf_counter() - began) / COPIES)
    mx.clear_cache()
    return 2 * size / median(seconds[1:])


def gpu_cores() -> int | None:
    """Of a Mac's GPU."""
    if sys.platform != "darwin":
        return None
    try:
        done = subprocess.run(CORES, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return read_cores(done.stdout)


def read_cores(text: str) -> int | None:
    """From what system_profiler says of displays."""
    found = re.search(r"Total Number of Cores: (\d+)", text)
    return int(found[1]) if found else None
