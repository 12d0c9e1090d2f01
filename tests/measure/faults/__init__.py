"""Faults to seed into kernels: one module for each source in `metal/`, of the same name.

A kernel's module has FAULTS, those of its own source and of helper functions it takes in, and
TESTS, the files that should find them. A module about helper functions has the faults alone.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from dflash_mlx.kernels.source import BODY


class Fault(NamedTuple):
    """A change of a kernel's text: `old`, which occurs in it exactly once, becomes `new`.

    equivalent: why it changes no behaviour, for one that does not; tests then have to pass.
    """

    old: str
    new: str
    equivalent: str = ""

    def seeded(self, header: str, body: str) -> tuple[str, str]:
        """Header and body with the fault.  Raises ValueError unless `old` occurs exactly once."""
        text = header + BODY + body
        if text.count(self.old) != 1 or self.new == self.old:
            raise ValueError(f"{self.old!r} occurs {text.count(self.old)} times, expected once")
        header, _, body = text.replace(self.old, self.new).partition(BODY)
        return header, body


@dataclass(frozen=True)
class Faults:
    """Those of one kernel, and the files that test it."""

    kernel: str
    tests: tuple[str, ...]
    faults: tuple[Fault, ...]


def load(kernel: str) -> Faults:
    """The faults listed for a kernel."""
    module = importlib.import_module(f"{__name__}.{kernel}")
    return Faults(kernel, module.TESTS, tuple(module.FAULTS))


def kernels() -> list[str]:
    """The sources in `metal/` that are kernels."""
    folder = files("dflash_mlx.metal").iterdir()
    sources = [p for p in folder if p.name.endswith(".metal")]
    return sorted(Path(p.name).stem for p in sources if BODY in p.read_text())


def without_faults() -> list[str]:
    """Kernels for which none are listed."""
    listed = {p.stem for p in Path(__file__).parent.glob("*.py")}
    return [kernel for kernel in kernels() if kernel not in listed]
