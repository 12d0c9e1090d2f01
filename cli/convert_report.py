"""What a conversion will make, or has made, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .pair_views import size

if TYPE_CHECKING:
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


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """The same as text."""
    from dflash_mlx.convert.sizes import CONTEXT

    about = "" if facts.get("exact", True) else "about "
    yield f"{facts['out']}"
    for part, count in facts["disk"].items():
        how = "; ".join(facts.get("how", {}).get(part, ()))
        yield f"  {part:8} {about}{size(count):>10}  {how}".rstrip()
    yield f"  {'memory':8} {about}{size(facts['memory']):>10}  at {CONTEXT} tokens"
    if "fits" in facts:
        yield f"  {'here':8} {'it fits' if facts['fits'] else 'it does not fit'} into memory"


def _facts(request: Request, sizes: Sizes) -> dict[str, Any]:
    return {
        "out": str(request.out),
        "parts": request.parts,
        "target": request.target.as_dict(),
        "draft": request.drafter.as_dict(),
        "disk": dict(sizes.disk),
        "memory": sizes.memory.total,
    }
