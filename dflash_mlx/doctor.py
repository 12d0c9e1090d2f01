"""A look at this machine: what an issue report should say, and what is wrong."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .downloads import folder_size, hub_cache
from .machine import (
    TESTED,
    Machine,
    blas,
    in_range,
    system,
    tested_range,
    this_machine,
    versions,
)
from .paths import cache_root

if TYPE_CHECKING:
    from .selfcheck import SelfCheck
    from .tune.store import Record


@dataclass(frozen=True)
class Cache:
    """A folder with files that can be had again."""

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        tested: per package, the versions this one was tested with.
        kernels: per Metal kernel, for how many rows it is chosen here, or why not; empty without
            Metal.
        check: None where the self check broke off; `problems` says why.
        problems: a line each; empty if all is well.
        costs: measured times of rounds on this machine.
    """

    versions: dict[str, str | None]
    tested: dict[str, str | None]
    system: str
    machine: Machine | None
    blas: str | None
    kernels: dict[str, str]
    caches: tuple[Cache, ...]
    check: SelfCheck | None
    problems: tuple[str, ...]
    costs: tuple[Record, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """In the form of `--json`; sizes in bytes."""
        check = self.check and asdict(self.check) | {"passed": self.check.passed}
        return {
            "versions": self.versions,
            "tested_versions": self.tested,
            "system": self.system,
            "machine": self.machine and asdict(self.machine) | {"dtype": self.machine.dtype},
            "blas": self.blas,
            "kernels": self.kernels,
            "caches": [{"name": c.name, "path": str(c.path), "size": c.size} for c in self.caches],
            "self_check": check,
            "costs": [record.as_dict() for record in self.costs],
            "problems": list(self.problems),
        }


def examine() -> Report:
    """Look at everything. What breaks on the way becomes a problem in the report."""
    problems: list[str] = []
    found, tested = versions(), {name: tested_range(name) for name in TESTED}
    problems += _wrong_versions(found, tested)
    machine = _machine(problems)
    check = _self_check(problems)  # before `blas`: it imports MLX
    caches = tuple(_caches(problems))
    return Report(
        versions=found,
        tested=tested,
        system=system(),
        machine=machine,
        blas=blas(),
        kernels=_kernels(machine, problems),
        caches=caches,
        check=check,
        problems=tuple(problems),
        costs=_costs(machine),
    )


def _wrong_versions(found: dict[str, str | None], tested: dict[str, str | None]) -> list[str]:
    problems = []
    for name, wanted in tested.items():
        version = found.get(name)
        if version is None:
            problems.append(f"{name} is not installed; install dflash-mlx again")
        elif wanted and not in_range(version, wanted):
            problems.append(f"{name} {version} is not among the tested versions, {wanted}")
    return problems


def _machine(problems: list[str]) -> Machine | None:
    try:
        machine = this_machine()
    except Exception as error:  # a broken installation breaks in many ways
        problems.append(f"MLX does not start: {_reason(error)}")
        return None
    if sys.platform == "darwin" and machine.kind == "cpu":
        problems.append("MLX computes on the CPU of this Mac; its Metal device is not available")
    return machine


def _self_check(problems: list[str]) -> SelfCheck | None:
    try:
        from .selfcheck import self_check

        check = self_check()
    except Exception as error:  # whatever it is, it is what the user came to see
        problems.append(f"the self check broke off: {_reason(error)}")
        return None
    if not check.passed:
        problems.append(
            f"the self check failed: DFlash and plain decoding agree in {check.same} of "
            f"{check.tokens} tokens, {check.accepted} of {check.drafted} drafted were accepted"
        )
    return check


def _kernels(machine: Machine | None, problems: list[str]) -> dict[str, str]:
    if machine is None or machine.kind != "metal":
        return {}
    from .kernels.choice import Kernels
    from .kernels.overview import overview

    kernels = Kernels()
    found = overview(kernels)
    problems += [f"kernel {name} is out of use: {why}" for name, why in kernels.refused.items()]
    return found


def _costs(machine: Machine | None) -> tuple[Record, ...]:
    if machine is None:
        return ()
    from .tune.store import records

    return tuple(record for record in records() if record.setting.machine == machine.name)


def _caches(problems: list[str]) -> list[Cache]:
    caches = []
    for name, path in (("hub", hub_cache()), ("dflash-mlx", cache_root())):
        if not _writable(path):
            problems.append(f"the cache folder {path} cannot be written to")
        caches.append(Cache(name, path, folder_size(path)))
    return caches


def _writable(path: Path) -> bool:
    """Whether a folder can be written to or made."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
