"""What a conversion will make, or has made, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .pair_views import size

if TYPE_CHECKING:
    from dflash_mlx.convert.calibrate import Calibration
    from dflash_mlx.convert.choose import Row
    from dflash_mlx.convert.run import Job, Request
    from dflash_mlx.convert.sizes import Sizes


def planned(request: Request) -> dict[str, Any]:
    """A conversion that is not done, as JSON."""
    from dflash_mlx.convert.sizes import estimate
    from dflash_mlx.machine import this_machine

    machine = this_machine()
    found = estimate(request, machine)
    facts = _facts(request, found)
    return facts | {"exact": found.exact, "fits": found.memory.total <= machine.usable}


def made(job: Job) -> dict[str, Any]:
    """One that is about to be done."""
    from dflash_mlx.convert.sizes import of_plans
    from dflash_mlx.machine import this_machine

    notes = {plan.part: list(plan.facts) for plan in job.plans}
    return _facts(job.request, of_plans(job.plans, this_machine())) | {"how": notes}


def calibrated(found: Calibration) -> dict[str, Any]:
    """The table that bits were chosen from."""
    choice = found.choice
    rows = [*(("alone", r) for r in choice.parts), *(("together", r) for r in choice.tried)]
    return {
        "prompts": found.prompts,
        "tokens": found.tokens,
        "drift": found.drift,
        "rows": [_row("as it came", choice.base), *(_row(kind, row) for kind, row in rows)],
        "chosen": _row("chosen", choice.chosen),
    }


def _row(kind: str, row: Row) -> dict[str, Any]:
    bits = {group: row.recipe.bits(group) for group in ("fc", "attention", "mlp")}
    return {"kind": kind, **bits, "size": row.size, "tau": row.tau, "loss": row.loss}


def _calibration_lines(facts: dict[str, Any]) -> Iterator[str]:
    yield (
        f"calibrated on {facts['prompts']} requests, {facts['tokens']} tokens; the target drifts "
        f"by {facts['drift']:.4f} nats per token"
    )
    heads = f"{'fc':>4}{'attention':>11}{'mlp':>5}{'size':>10}{'tokens/round':>14}{'loss':>8}"
    yield f"  {'':12}{heads}"
    for row in (*facts["rows"], facts["chosen"]):
        bits = [str(row[group] or "-") for group in ("fc", "attention", "mlp")]
        yield (
            f"  {row['kind']:12}{bits[0]:>4}{bits[1]:>11}{bits[2]:>5}{size(row['size']):>10}"
            f"{row['tau']:>14.3f}{row['loss']:>8.1%}"
        )
    yield ""


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """The same as text."""
    from dflash_mlx.convert.sizes import CONTEXT

    if "calibration" in facts:
        yield from _calibration_lines(facts["calibration"])
    about = "" if facts.get("exact", True) else "about "
    yield f"{facts['out']}"
    for part, count in facts["disk"].items():
        how = "; ".join(facts.get("how", {}).get(part, ()))
        yield f"  {part:8} {about}{size(count):>10}  {how}".rstrip()
    yield f"  {'memory':8} {about}{size(facts['memory']):>10}  at {CONTEXT} tokens"
    if "fits" in facts:
        yield f"  {'here':8} {'it fits' if facts['fits'] else 'it does not fit'} into memory"
    if "uploaded" in facts:
        yield f"  {'hub':8} {facts['uploaded']}"


def _facts(request: Request, sizes: Sizes) -> dict[str, Any]:
    return {
        "out": str(request.out),
        "parts": request.parts,
        "target": request.target.as_dict(),
        "draft": request.drafter.as_dict(),
        "disk": dict(sizes.disk),
        "memory": sizes.memory.total,
    }
