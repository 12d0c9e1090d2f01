"""`dflash-mlx models`: every pair, what it takes, and whether it fits and is here."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .options import Bits
from .pair_views import details, facts, table

if TYPE_CHECKING:
    from dflash_mlx.listing import Pick, Wanted
    from dflash_mlx.machine import Machine

EXAMPLES = """Examples:
  dflash-mlx models
  dflash-mlx models --context 32768 --bits 4
  dflash-mlx models Qwen3-8B --bits 8
  dflash-mlx models mlx-community/Qwen3-8B-4bit
  dflash-mlx models --json"""


def models(
    name: Annotated[
        str | None,
        typer.Argument(help="Show this pair alone: a short name, a hub id or a folder"),
    ] = None,
    context: Annotated[
        int, typer.Option(help="Tokens of prompt and answer together", metavar="N", min=1)
    ] = 4096,
    bits: Annotated[
        Bits | None, typer.Option(help="Memory with the target quantised while loading")
    ] = None,
    draft_bits: Annotated[Bits | None, typer.Option(help="The same for the draft")] = None,
    kv_bits: Annotated[
        Bits | None, typer.Option(help="Memory with the target's keys and values in so many bits")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """List the pairs: their sizes, the memory they need, what fits this machine and what is here.

    Nothing is downloaded or loaded for it.
    """
    from dflash_mlx.footprint import GROUP, Kept
    from dflash_mlx.listing import Wanted, every, one
    from dflash_mlx.machine import this_machine

    kept = Kept(int(kv_bits), GROUP) if kv_bits else None
    wanted = Wanted(
        context, int(bits) if bits else None, int(draft_bits) if draft_bits else None, kept
    )
    picks = [one(name)] if name is not None else every()
    machine = this_machine()
    console = Console(highlight=False)
    if json:
        typer.echo(jsonlib.dumps(record(picks, wanted, machine), ensure_ascii=False))
        return
    if name is not None:
        lines = facts(details(picks[0], wanted, machine), console.width)
    else:
        lines = table(picks, wanted, machine, console.width)
    for line in lines:
        console.print(line)


def record(picks: list[Pick], wanted: Wanted, machine: Machine) -> dict[str, Any]:
    """The pairs as `--json` prints them; sizes in bytes, null for what is not known."""
    place = {
        "name": machine.name,
        "kind": machine.kind,
        "memory": machine.memory,
        "usable": machine.usable,
    }
    return {"machine": place, "pairs": [_pair(pick, wanted, machine) for pick in picks]}


def _pair(pick: Pick, wanted: Wanted, machine: Machine) -> dict[str, Any]:
    from dflash_mlx.listing import PRECISIONS, precision

    known, draft = pick.known, pick.draft_size
    return {
        "name": known.name,
        "target": known.target,
        "draft": known.draft or None,
        "kind": known.kind,
        "family": known.family,
        "layers": draft.shape.layers,
        "block": draft.shape.block,
        "taps": draft.shape.taps,
        "parameters": {
            "target": pick.target_size.weights.parameters,
            "draft": draft.weights.parameters if draft.weights else None,
        },
        "published_as": pick.published.stored,
        "disk": {
            "target": {precision(bits): pick.disk(bits) for bits in PRECISIONS},
            "draft": pick.draft_disk,
        },
        "memory": _memory(pick, wanted, machine),
        "fits": pick.fits(wanted, machine),
        "downloaded": _downloaded(pick),
        "gated": list(known.gated),
        "note": known.note or None,
        "command": pick.command(wanted),
    }


def _memory(pick: Pick, wanted: Wanted, machine: Machine) -> dict[str, Any]:
    estimate, kept = pick.memory(wanted, machine), pick.kv(wanted)
    return {
        "context": wanted.context,
        "bits": pick.target_size.weights.bits or wanted.bits,
        "draft_bits": wanted.draft_bits,
        "kv_bits": kept.bits if kept else None,
        "dtype": machine.dtype,
        "target": estimate.target,
        "draft": estimate.draft,
        "target_cache": estimate.cache,
        "draft_context": estimate.context,
        "allowance": estimate.allowance,
        "total": estimate.total,
        "complete": estimate.complete,
    }


def _downloaded(pick: Pick) -> dict[str, Any]:
    """What is here; sizes and shapes of it are read from the files, the rest from the catalog."""
    from dflash_mlx.listing import is_here

    copies = [
        {
            "name": download.name,
            "folder": str(download.folder),
            "bits": download.bits,
            "size": download.size,
            "complete": download.complete,
        }
        for download in pick.copies
    ]
    return {"target": is_here(pick.target), "draft": is_here(pick.draft), "copies": copies}
