"""Pairs on a screen: a table of all, and one in detail."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from dflash_mlx.listing import Pick, Wanted
    from dflash_mlx.machine import Machine

MIB, GIB = 2**20, 2**30
DRAFT_WIDTH = 28  # the draft gets a column where this much of its name fits, else a line
HEADS = ["target", "kind", "bf16", "8-bit", "4-bit", "memory", "fits", "here"]
DRAFT_HEADS = ["draft", "layers", "block", "taps"]
COLOURS = {"yes": "green", "no": "red", "?": "yellow"}
LEGEND = (
    "kind: DFlash 1 or 2. bf16, 8-bit, 4-bit: GiB of the target's files at that precision and the "
    "draft's; * published in 4 bits, and what is packed so stays so. memory: GiB of weights, "
    "caches and an allowance of 0.5 GiB + 5 %. > is a lower bound, ? is not known. fits: a "
    "precision is named where the pair fits with --bits. here: what is downloaded; copy: a "
    "quantised copy of the target. One pair in detail: dflash-mlx models NAME"
)


def table(picks: list[Pick], wanted: Wanted, machine: Machine, width: int) -> Iterator[Text]:
    """The lines of the table, for a screen of `width` columns."""
    rows = [HEADS, *(_row(pick, wanted, machine) for pick in picks)]
    drafts = [DRAFT_HEADS, *(_draft_row(pick) for pick in picks)]
    yield Text(f"{machine.name} ({machine.kind}), {_gib(machine.usable)} GiB for models")
    yield Text(f"memory at {wanted.context} tokens, {_precision(wanted.bits, machine)}")
    wide = _joined(rows, drafts, width)
    widths = _widths(wide or rows)
    left = {0, 1, len(widths) - 2, len(widths) - 1}
    yield _line((wide or rows)[0], widths, left, heading=True)
    for row, draft in zip((wide or rows)[1:], drafts[1:], strict=True):
        yield _line(row, widths, left)
        if not wide:
            yield Text(_second_line(draft), style="dim")
    yield Text(LEGEND, style="dim")


def _joined(rows: list[list[str]], drafts: list[list[str]], width: int) -> list[list[str]] | None:
    """Rows with the draft's columns in them, if the screen is wide enough for that."""
    rows = [[row[0], row[1].removeprefix("DFlash") or "1", *row[2:]] for row in rows]
    facts = [draft[1:] for draft in drafts]
    used = sum(_widths(rows)) + sum(_widths(facts)) + len(rows[0]) + len(facts[0])
    room = min(width - used, max(len(draft[0]) for draft in drafts))
    if room < DRAFT_WIDTH:
        return None
    return [
        [row[0], _cut(draft[0], room), row[1].strip(), *draft[1:], *row[2:]]
        for row, draft in zip(rows, drafts, strict=True)
    ]


def details(pick: Pick, wanted: Wanted, machine: Machine) -> list[tuple[str, str]]:
    """One pair, a line a fact."""
    known, shape = pick.known, pick.draft_size.shape
    lines = [
        ("target", f"{known.target} ({known.family})"),
        ("draft", f"{known.draft or 'in this package'} ({_kind(pick)})"),
        ("", f"{_n(shape.layers)} layers, block {_n(shape.block)}, {_n(shape.taps)} taps"),
        ("disk", _files(pick)),
        ("", f"draft {size(pick.draft_disk)}"),
        *_memory_lines(pick, wanted, machine),
        ("here", _downloads(pick)),
        ("sizes", _origin(pick)),
    ]
    if known.gated:
        whose = " and ".join(known.gated)
        lines.append(("gated", f"the hub gives out the {whose} only on request"))
    if known.note:
        lines.append(("note", known.note))
    return [*lines, ("run", pick.command(wanted))]


def facts(lines: list[tuple[str, str]], width: int) -> Iterator[Text]:
    """Names and facts in two columns, for a screen of `width` columns."""
    indent = max(len(name) for name, _ in lines) + 2
    for name, text in lines:
        for part in textwrap.wrap(text, max(20, width - indent), break_on_hyphens=False):
            yield Text.assemble((name.ljust(indent), "dim"), part)
            name = ""


def size(count: int | None) -> str:
    """Bytes in GiB, or MiB where that says more."""
    if count is None:
        return "?"
    return f"{_gib(count)} GiB" if count >= 0.95 * GIB else f"{count / MIB:.0f} MiB"


def _precision(bits: int | None, machine: Machine) -> str:
    return f"the target in {bits} bits" if bits else f"targets as published, in {machine.dtype}"


def _row(pick: Pick, wanted: Wanted, machine: Machine) -> list[str]:
    from dflash_mlx.listing import PRECISIONS

    sizes = [_disk(pick, bits) for bits in PRECISIONS]
    memory, fits = _memory(pick, wanted, machine), _fits(pick, wanted, machine)
    return [pick.known.name, _kind(pick), *sizes, memory, fits, _here(pick)]


def _draft_row(pick: Pick) -> list[str]:
    shape = pick.draft_size.shape
    name = pick.known.draft or "in this package"
    return [name, _n(shape.layers), _n(shape.block), _n(shape.taps)]


def _second_line(draft: list[str]) -> str:
    name, layers, block, taps = draft
    return f"  {name} · {layers} layers, block {block}, {taps} taps"


def _widths(rows: list[list[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _line(cells: list[str], widths: list[int], left: set[int], heading: bool = False) -> Text:
    line = Text()
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        style = "bold" if i == 0 else COLOURS.get(cell, "")
        text = cell.ljust(width) if i in left else cell.rjust(width)
        line.append(f"{text} ", "dim" if heading else style)
    line.rstrip()
    return line


def _cut(name: str, room: int) -> str:
    return name if len(name) <= room else f"{name[: room - 1]}…"


def _n(value: int | None) -> str:
    return "?" if value is None else str(value)


def _kind(pick: Pick) -> str:
    return "DFlash" if pick.known.kind == 1 else "DFlash 2"


def _gib(size: int) -> str:
    value = size / GIB
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}"


def _disk(pick: Pick, bits: int | None) -> str:
    at_least = ">" if pick.draft_disk is None else ""
    star = "*" if bits is None and pick.published.packed else ""
    return f"{at_least}{_gib(pick.disk(bits) + (pick.draft_disk or 0))}{star}"


def _files(pick: Pick) -> str:
    eight, four = (size(pick.disk(bits)) for bits in (8, 4))
    how = pick.published.stored
    if how == "fp8":
        first = f"{size(pick.disk(None))} in bf16 (published in fp8, which is half of it)"
    else:
        first = f"{size(pick.disk(None))} as published, in {how}"
    return f"target {first}; {eight} in 8 bits, {four} in 4 bits"


def _memory(pick: Pick, wanted: Wanted, machine: Machine) -> str:
    estimate = pick.memory(wanted, machine)
    return f"{'' if estimate.complete else '>'}{_gib(estimate.total)}"


def _memory_lines(pick: Pick, wanted: Wanted, machine: Machine) -> list[tuple[str, str]]:
    estimate = pick.memory(wanted, machine)
    bits = pick.target_size.weights.bits or wanted.bits
    at_least = "" if estimate.complete else "at least "
    stored = f"in {bits} bits" if bits else f"as published, in {machine.dtype}"
    fits = _fits(pick, wanted, machine)
    verdict = fits if fits in COLOURS else f"no, but with --bits {fits[0]}"
    return [
        (
            "memory",
            f"{at_least}{size(estimate.total)} at {wanted.context} tokens, target {stored}",
        ),
        ("", f"target {size(estimate.target)}, draft {size(estimate.draft)}"),
        ("", f"target's cache {size(estimate.cache)}, draft's context {size(estimate.context)}"),
        ("", f"allowance for passes and buffers {size(estimate.allowance)}"),
        ("fits", f"{verdict}; {machine.name} ({machine.kind}) has {size(machine.usable)}"),
    ]


def _fits(pick: Pick, wanted: Wanted, machine: Machine) -> str:
    """yes, no, ?, or the precision in which the pair would fit."""
    from dflash_mlx.listing import Wanted

    found = pick.fits(wanted, machine)
    if found is False and wanted.bits is None:
        for bits in (8, 4):
            if pick.fits(Wanted(wanted.context, bits, wanted.draft_bits), machine):
                return f"{bits}-bit"
    return {True: "yes", False: "no", None: "?"}[found]


def _here(pick: Pick) -> str:
    from dflash_mlx.listing import is_here

    target, draft = is_here(pick.target), is_here(pick.draft)
    if target or draft:
        return "yes" if target and draft else "target" if target else "draft"
    return "copy" if any(copy.complete for copy in pick.copies) else "no"


def _downloads(pick: Pick) -> str:
    every = (pick.target, *pick.copies, pick.draft if pick.known.draft else None)
    found = {
        d.name: f"{d.name} ({size(d.size)}{'' if d.complete else ', incomplete'})"
        for d in every
        if d is not None
    }
    return ", ".join(found.values()) or "nothing"


def _origin(pick: Pick) -> str:
    from dflash_mlx.listing import is_here

    target, draft = (
        "read from its files" if is_here(d) else "estimated from the published config"
        for d in (pick.target, pick.draft)
    )
    return f"target {target}, draft {draft}" if target != draft else f"each {target}"
