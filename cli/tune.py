"""`dflash-mlx tune`: what rounds take on this machine, by how many tokens they verify."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from dflash_mlx.errors import UsageError
from dflash_mlx.pairs import EMBEDDED
from dflash_mlx.paths import write_whole

from .options import ModelOptions, flags, option
from .ready import Measuring
from .render import Screen, count
from .several import wire_memory

if TYPE_CHECKING:
    from dflash_mlx.tune.store import Record

EXAMPLES = """Examples:
  dflash-mlx tune Qwen3-8B --bits 4
  dflash-mlx tune smollm2-135m --contexts 256,2048,8192
  dflash-mlx tune export costs.json
  dflash-mlx tune import costs.json"""


class MeasureFirst(TyperGroup):
    """Measures where no other command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


tune = typer.Typer(
    name="tune",
    cls=MeasureFirst,
    help="Measure what rounds take, for --block auto. `tune MODEL` is `tune run MODEL`.",
    epilog=EXAMPLES,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass(frozen=True)
class TunedPair(ModelOptions):
    """Which pair."""

    model: Annotated[
        str, typer.Argument(help="Target: a short name, a hub id or a folder", metavar="MODEL")
    ] = EMBEDDED
    no_draft: Annotated[bool, typer.Option("--no-draft", hidden=True)] = False


def _how(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Measurement", *names, help=help, metavar=metavar)


@dataclass(frozen=True)
class TuneOptions:
    """How long to measure, and how to show it."""

    contexts: Annotated[
        str, _how("--contexts", help="Lengths of the text to measure at", metavar="N,N")
    ] = "256,4096"
    repeats: Annotated[
        int, _how("--repeats", help="Rounds of each kind that count", metavar="N")
    ] = 9
    json: Annotated[bool, _how("--json", help="Print one JSON object")] = False
    quiet: Annotated[bool, _how("--quiet", "-q", help="Show no progress")] = False

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise typer.BadParameter("--repeats needs 1 at least")

    @property
    def lengths(self) -> list[int]:
        """The contexts, ascending."""
        parts = [part.strip() for part in self.contexts.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise typer.BadParameter(
                f"{self.contexts!r} is not a list of numbers, as in 256,4096",
                param_hint="--contexts",
            )
        return sorted({int(part) for part in parts})


def run(model: TunedPair, how: TuneOptions) -> None:
    """Measure rounds of a pair at every width and keep the times.

    Later answers with `--block auto` go by them.
    """
    lengths, screen = how.lengths, Screen(quiet=how.quiet)
    pair = model.load(how.quiet)
    wire_memory()
    from dflash_mlx.tune.measure import measure
    from dflash_mlx.tune.store import Record, setting_of, write

    with Measuring(screen) as bar:
        record = Record(setting_of(pair), measure(pair, lengths, how.repeats, bar))
    path = write(record)
    if how.json:
        typer.echo(jsonlib.dumps(record.as_dict(), ensure_ascii=False))
        return
    show(record)
    screen.note(f"kept in {path}")


def export(
    file: Annotated[
        Path | None, typer.Argument(help="Where to write; by default to the screen", metavar="FILE")
    ] = None,
) -> None:
    """Write all kept times as one JSON document, to be imported elsewhere."""
    from dflash_mlx.tune.store import records

    found = [record.as_dict() for record in records()]
    text = jsonlib.dumps(found, indent=1, ensure_ascii=False)
    if file is None:
        typer.echo(text)
        return
    write_whole(file, text)
    typer.echo(f"{count(len(found), 'record')} written to {file}", err=True)


def take(
    file: Annotated[
        Path, typer.Argument(help="What `tune export` wrote; - reads stdin", metavar="FILE")
    ],
) -> None:
    """Keep the times of another installation.

    They are used where chip, MLX, target, draft and quantisation are the same.
    """
    from dflash_mlx.machine import this_machine
    from dflash_mlx.tune.store import Record, write

    raw = _read(file)
    found = [
        Record.from_dict(item, str(file)) for item in (raw if isinstance(raw, list) else [raw])
    ]
    for record in found:
        write(record)
    here = this_machine().name
    fitting = sum(record.setting.machine == here for record in found)
    typer.echo(f"{count(len(found), 'record')} kept, of them {fitting} for {here}", err=True)


def _read(file: Path) -> Any:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        return jsonlib.loads(text)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{file} is no JSON: {error}") from error


def show(record: Record) -> None:
    """A table: what a round takes, and how many tokens it must bring to beat plain decoding."""
    setting, curve = record.setting, record.curve
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for name in ("context", "verified", "pass ms", "round ms", "pays from"):
        table.add_column(name, justify="right")
    for row in _rows(record):
        table.add_row(*row)
    console.print(f"{setting.target} with {setting.draft} on {setting.machine}, mlx {setting.mlx}")
    console.print(table)
    drafts = ", ".join(f"{1e3 * s:.1f}" for s in curve.draft)
    console.print(f"a draft takes {drafts} ms, the host {1e3 * curve.host:.1f} ms a round")
    console.print("pays from: tokens a round has to bring to be faster than plain decoding")


def _rows(record: Record) -> Iterator[tuple[str, ...]]:
    curve = record.curve
    for context in curve.contexts:
        for width in curve.widths:
            whole = curve.round(width, context)
            yield (
                str(context) if width == 1 else "",
                str(width),
                f"{1e3 * curve.target(width, context):.1f}",
                f"{1e3 * whole:.1f}",
                f"{whole / curve.plain(context):.2f}",
            )


tune.command("run")(flags(run))
tune.command("export")(export)
tune.command("import")(take)
