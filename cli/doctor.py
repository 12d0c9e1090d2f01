"""`dflash-mlx doctor`: what this installation is, and whether it works."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .pair_views import facts, size

if TYPE_CHECKING:
    from dflash_mlx.doctor import Report
    from dflash_mlx.machine import Machine
    from dflash_mlx.tune.store import Record

EXAMPLES = """Examples:
  dflash-mlx doctor
  dflash-mlx doctor --json"""


@dataclass(frozen=True)
class DoctorOptions:
    """How the report is shown."""

    json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False


def doctor(how: DoctorOptions) -> None:
    """Show versions, device, memory and caches, and check that decoding works.

    A tiny random pair has to decode the same with DFlash and without.
    Exits 1 if anything is wrong.
    """
    from dflash_mlx.doctor import examine

    report = examine()
    if how.json:
        typer.echo(jsonlib.dumps(report.as_dict(), ensure_ascii=False))
    else:
        console = Console(highlight=False)
        for line in facts(_lines(report), console.width):
            console.print(line)
    for problem in report.problems:
        typer.echo(f"problem: {problem}", err=True)
    if report.problems:
        raise typer.Exit(1)


def _lines(report: Report) -> list[tuple[str, str]]:
    lines = [(name, version or "not installed") for name, version in report.versions.items()]
    tested = [f"{name} {wanted}" for name, wanted in report.tested.items() if wanted]
    lines.append(("tested with", "; ".join(tested) or "unknown: no package metadata"))
    lines.append(("system", report.system))
    lines += _device_lines(report)
    kernels = [f"{name}: {state}" for name, state in report.kernels.items()]
    lines.append(("kernels", "; ".join(kernels) or "none: there is no Metal here"))
    lines += [(f"{c.name} cache", f"{c.path} ({size(c.size)})") for c in report.caches]
    lines += [("rounds of", _costs(record)) for record in report.costs]
    return [*lines, ("self check", _verdict(report))]


def _costs(record: Record) -> str:
    setting, curve = record.setting, record.curve
    context = curve.contexts[0]
    passes = (f"{w}: {1e3 * curve.round(w, context):.1f}" for w in curve.widths)
    return (
        f"{setting.target} in {setting.dtype}, mlx {setting.mlx}: ms by tokens verified "
        f"{', '.join(passes)}; decoding plainly {1e3 * curve.plain(context):.1f}"
    )


def _device_lines(report: Report) -> list[tuple[str, str]]:
    machine = report.machine
    if machine is None:
        return [("device", "unknown: MLX does not start")]
    kind = {"metal": "Metal", "cuda": "CUDA", "cpu": "CPU"}[machine.kind]
    lines = [
        ("device", f"{machine.name} ({kind}), computes in {machine.dtype} by default"),
        ("memory", _memory(machine)),
    ]
    if machine.kind == "metal":
        limit = machine.wired_limit
        lines.append(("wired limit", f"set to {size(limit)}" if limit else "macOS's own"))
    if report.blas and machine.kind == "cpu":
        lines.append(("BLAS", report.blas))
    return lines


def _memory(machine: Machine) -> str:
    both = f"{size(machine.memory)}, of it for models {size(machine.usable)}"
    return both if machine.usable != machine.memory else size(machine.memory)


def _verdict(report: Report) -> str:
    check = report.check
    if check is None:
        return "broke off"
    return (
        f"{'passed' if check.passed else 'FAILED'}: {check.same} of {check.tokens} tokens equal "
        f"plain decoding's, {check.accepted} of {check.drafted} drafted accepted in "
        f"{check.rounds} rounds"
    )
