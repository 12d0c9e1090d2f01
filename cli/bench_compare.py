"""`dflash-mlx bench compare`: what changed between two runs."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .options import option
from .render import Screen

if TYPE_CHECKING:
    from dflash_mlx.bench.comparing import Change
    from dflash_mlx.bench.statistics import Interval

EXAMPLES = """Examples:
  dflash-mlx bench compare before.json after.json
  dflash-mlx bench compare m3.json m4.json --json"""

HEADS = ("set", "arm", "prompts", "decode (95 %)", "first token (95 %)", "tok/round", "same")


@dataclass(frozen=True)
class CompareOptions:
    """Which two files."""

    old: Annotated[Path, typer.Argument(help="The --json file of a run", metavar="A")]
    new: Annotated[Path, typer.Argument(help="The file of another one", metavar="B")]
    json: Annotated[bool, option("Output", "--json", help="Print one JSON object")] = False


def compare(files: CompareOptions) -> None:
    """Compare two runs, prompt by prompt.

    Ratios are the second file's by the first's, with bootstrap intervals over the
    prompts that both have answered. An interval without 1 is a change.
    """
    from dflash_mlx.bench.comparing import changes
    from dflash_mlx.bench.recording import read_recording

    found = changes(read_recording(files.old), read_recording(files.new))
    if files.json:
        typer.echo(jsonlib.dumps({"changes": [change.as_dict() for change in found]}))
        return
    screen = Screen()
    screen.out.print(_table(found))
    for line in _notes(found):
        screen.out.print(line, highlight=False)


def _table(changes: Sequence[Change]) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in HEADS:
        left = head in ("set", "arm")
        made.add_column(head, justify="left" if left else "right", no_wrap=True, header_style="dim")
    for change in changes:
        made.add_row(
            change.dataset,
            change.arm,
            str(change.prompts),
            _ratio(change.decode),
            _ratio(change.ttft),
            f"{change.tau.value:.3f}" if change.tau else "",
            f"{change.same}/{change.prompts}",
        )
    return made


def _notes(changes: Sequence[Change]) -> Iterator[str]:
    yield ""
    yield "B by A, medians over prompts: above 1 decodes faster; a first token is later above 1"
    for change in changes:
        if change.paired and (change.paired.only_first or change.paired.only_second):
            yield (
                f"{change.dataset}, {change.arm}: right in A alone {change.paired.only_first}, in "
                f"B alone {change.paired.only_second} (McNemar p {change.paired.p_value:.2g})"
            )


def _ratio(interval: Interval | None) -> str:
    from dflash_mlx.bench.wording import ranged

    return ranged(interval) if interval else ""
