"""`dflash-mlx convert`: target and draft to MLX, in few bits."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from .convert_report import calibrated, lines, made, planned
from .options import Dtype, option
from .render import Screen

if TYPE_CHECKING:
    from dflash_mlx.convert.calibrate import Calibration
    from dflash_mlx.convert.recipe import DraftRecipe, TargetRecipe
    from dflash_mlx.convert.run import Parts, Request

Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4"]
Recipe = Literal["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"]
DEFAULT_DRAFT_BITS = 8  # where the target is quantised; see docs/convert.md

EXAMPLES = """Examples:
  dflash-mlx convert Qwen3.5-9B --bits 4 --out qwen3.5-9b-4bit
  dflash-mlx convert Qwen/Qwen3-8B --mode mxfp4 --target-only --out qwen3-8b-mxfp4
  dflash-mlx convert z-lab/Qwen3-8B-DFlash-b16 --draft-only --draft-bits 8 --out draft-8bit
  dflash-mlx convert model.gguf --draft drafter.gguf --bits 4 --out pair
  dflash-mlx convert smollm2-135m --bits 8 --calibrate 4 --out smollm2
  dflash-mlx convert Qwen3-8B --bits 4 --out qwen3-8b-4bit --dry-run"""


def _stored(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Weights", *names, help=help, metavar=metavar)


def _output(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Output", *names, help=help, metavar=metavar)


@dataclass(frozen=True)
class SourceOptions:
    """What is converted."""

    model: Annotated[
        str,
        typer.Argument(help="Target: a short name, a hub id, a folder or a GGUF", metavar="MODEL"),
    ]
    draft: Annotated[
        str | None,
        option(
            "Model",
            *("--draft", "-d"),
            help="Draft: a hub id, a folder or a GGUF; known pairs need none",
            metavar="NAME",
        ),
    ] = None
    target_only: Annotated[
        bool, option("Model", "--target-only", help="Convert the target alone")
    ] = False
    draft_only: Annotated[
        bool, option("Model", "--draft-only", help="Convert the draft alone; MODEL may be it")
    ] = False
    revision: Annotated[
        str | None,
        option("Model", "--revision", help="Branch, tag or commit of the target", metavar="NAME"),
    ] = None
    draft_revision: Annotated[
        str | None,
        option("Model", "--draft-revision", help="The same for the draft", metavar="NAME"),
    ] = None

    def __post_init__(self) -> None:
        if self.target_only and self.draft_only:
            raise typer.BadParameter("--target-only and --draft-only exclude each other")
        if self.target_only and (self.draft or self.draft_revision):
            raise typer.BadParameter("--target-only converts no draft; leave out its options")

    @property
    def parts(self) -> Parts:
        """The library's form of the two flags."""
        return "target" if self.target_only else "draft" if self.draft_only else "both"


@dataclass(frozen=True)
class WeightOptions:
    """How weights are stored."""

    bits: Annotated[
        int | None,
        _stored("--bits", help="Of the target: 2, 3, 4, 5, 6 or 8; by default 16", metavar="N"),
    ] = None
    group_size: Annotated[
        int | None,
        _stored("--group-size", help="Weights that share a scale: 32, 64, 128", metavar="N"),
    ] = None
    mode: Annotated[
        Mode | None, _stored("--mode", help="Of the target: affine, mxfp4, mxfp8 or nvfp4")
    ] = None
    recipe: Annotated[
        Recipe | None,
        _stored("--recipe", help="Of the target: mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6"),
    ] = None
    draft_bits: Annotated[
        int | None,
        _stored(
            "--draft-bits",
            help="Of the draft, 16 for none; by default 8 if the target is quantised",
            metavar="N",
        ),
    ] = None
    fc_bits: Annotated[
        int | None,
        _stored("--fc-bits", help="Of the draft's fusion; by default at least 8 bits", metavar="N"),
    ] = None
    dtype: Annotated[
        Dtype | None,
        _stored(
            "--dtype",
            help="Of what is not quantised; a draft beside a float16 target keeps its own",
            metavar="TYPE",
        ),
    ] = None

    def of_target(self, parts: Parts) -> TargetRecipe:
        """The library's form; refuses what is for a target where there is none."""
        from dflash_mlx.convert.recipe import TargetRecipe

        stated = {"--bits": self.bits, "--mode": self.mode, "--recipe": self.recipe}
        for name, value in stated.items():
            if parts == "draft" and value is not None:
                raise typer.BadParameter(f"{name} is the target's; the draft has --draft-bits")
        if parts == "draft":
            return TargetRecipe()
        recipe = TargetRecipe(
            self.bits, None, self.mode or "affine", recipe=self.recipe, dtype=self.dtype
        )
        size = self.group_size if recipe.quantises or parts == "target" else None
        return TargetRecipe(recipe.bits, size, recipe.mode, recipe.recipe, recipe.dtype)

    def of_draft(self, parts: Parts, target: TargetRecipe) -> DraftRecipe:
        """The library's form; refuses what is for a draft where there is none."""
        from dflash_mlx.convert.recipe import DraftRecipe

        for name, value in {"--draft-bits": self.draft_bits, "--fc-bits": self.fc_bits}.items():
            if parts == "target" and value is not None:
                raise typer.BadParameter(f"{name} is the draft's, which --target-only leaves out")
        bits = self.draft_bits
        if bits is None and target.quantises and parts == "both":
            bits = DEFAULT_DRAFT_BITS
        # One group size for both: modes of the target other than affine have their own.
        size = self.group_size if bits and self.mode in (None, "affine") else None
        dtype = None if parts == "both" and self.dtype == "float16" else self.dtype
        if bits == 16:
            return DraftRecipe.of(None, fc=self.fc_bits, dtype=dtype)
        return DraftRecipe.of(bits, fc=self.fc_bits, group_size=size, dtype=dtype)


@dataclass(frozen=True)
class CalibrationOptions:
    """Whether the draft's bits are chosen by measurement."""

    calibrate: Annotated[
        int | None,
        option(
            "Calibration",
            "--calibrate",
            help="Choose the draft's bits on this many requests that the target invents",
            metavar="N",
        ),
    ] = None
    tau_loss: Annotated[
        float,
        option(
            "Calibration",
            "--tau-loss",
            help="Tokens per round that may be lost, in percent",
            metavar="X",
        ),
    ] = 2.0

    def check(self, source: SourceOptions, weights: WeightOptions) -> None:
        """Refuse what makes no sense together."""
        if self.calibrate is None:
            if self.tau_loss != 2.0:
                raise typer.BadParameter("--tau-loss needs --calibrate")
            return
        if self.calibrate < 1 or not 0 <= self.tau_loss < 100:
            raise typer.BadParameter("--calibrate counts requests, --tau-loss is 0 to 100 percent")
        if source.parts != "both":
            raise typer.BadParameter("--calibrate needs target and draft")
        if weights.draft_bits is not None or weights.fc_bits is not None:
            raise typer.BadParameter("--calibrate chooses the draft's bits; leave out yours")


@dataclass(frozen=True)
class OutputOptions:
    """Where it goes, and what is shown."""

    out: Annotated[Path, _output("--out", "-o", help="The folder to be made", metavar="DIR")]
    force: Annotated[bool, _output("--force", help="Replace the folder, if it is a model's")] = (
        False
    )
    dry_run: Annotated[
        bool, _output("--dry-run", help="Show sizes and memory, download and write nothing")
    ] = False
    upload: Annotated[
        str | None,
        _output("--upload", help="Upload it to this repo on the hub", metavar="OWNER/NAME"),
    ] = None
    json: Annotated[bool, _output("--json", help="Print one JSON object")] = False
    quiet: Annotated[bool, _output("--quiet", "-q", help="Show no progress")] = False


def convert(
    source: SourceOptions,
    weights: WeightOptions,
    calibration: CalibrationOptions,
    output: OutputOptions,
) -> None:
    """Convert a target and its draft into a folder that loads fast and fits.

    The folder is a pair: dflash-mlx chat -m DIR. Weights are written one at a
    time; an interrupted run is continued by the same command, and the folder
    appears when it is whole.
    """
    calibration.check(source, weights)
    request = _request(source, weights, output)
    if output.dry_run:
        _print(output, planned(request))
        return
    if output.upload is not None:
        from dflash_mlx.hub import check_upload

        check_upload(output.upload)
    facts = _run(request, calibration, output)
    if output.upload is not None:
        from dflash_mlx.hub import upload

        facts["uploaded"] = upload(request.out, output.upload)
    _print(output, facts)


def _run(
    request: Request, calibration: CalibrationOptions, output: OutputOptions
) -> dict[str, Any]:
    """Calibrate if asked to, convert, and say what was made."""
    from dflash_mlx.convert.run import prepare

    screen = Screen(quiet=output.quiet)
    chosen: dict[str, Any] = {}
    if calibration.calibrate is not None:
        found = _calibrated(request, calibration.calibrate, calibration.tau_loss / 100, screen)
        request = replace(request, drafter=found.choice.chosen.recipe)
        chosen = {"calibration": calibrated(found)}
    job = prepare(request, quiet=output.quiet)
    facts = made(job) | chosen
    with _bar(screen) as report:
        job.write(report)
    return facts


def _calibrated(request: Request, count: int, allowed: float, screen: Screen) -> Calibration:
    from dflash_mlx.convert.calibrate import calibrate
    from dflash_mlx.convert.recipe import DraftRecipe
    from dflash_mlx.convert.run import sources

    target, draft = sources(request, quiet=screen.quiet)
    drafter = request.drafter
    plain = DraftRecipe(group_size=drafter.group_size, dtype=drafter.dtype)
    wanted = screen.err.is_terminal and not screen.quiet
    with screen.err.status("calibrating") if wanted else nullcontext() as status:

        def step(what: str) -> None:
            if status is not None:
                status.update(f"calibrating: {what}")

        return calibrate(
            target, draft, request.target, plain, count=count, allowed=allowed, step=step
        )


def _request(source: SourceOptions, weights: WeightOptions, output: OutputOptions) -> Request:
    from dflash_mlx.convert.run import Request

    target = weights.of_target(source.parts)
    return Request(
        model=source.model,
        out=output.out.expanduser(),
        draft=source.draft,
        parts=source.parts,
        target=target,
        drafter=weights.of_draft(source.parts, target),
        revision=source.revision,
        draft_revision=source.draft_revision,
        force=output.force,
    )


def _print(output: OutputOptions, facts: dict[str, Any]) -> None:
    if output.json:
        typer.echo(jsonlib.dumps(facts, ensure_ascii=False))
        return
    for line in lines(facts):
        typer.echo(line)


@contextmanager
def _bar(screen: Screen) -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("[dim]{task.description}"), BarColumn(), DownloadColumn())
    wanted = screen.err.is_terminal and not screen.quiet
    with Progress(
        *columns, TimeRemainingColumn(), console=screen.err, transient=True, disable=not wanted
    ) as bar:
        task = bar.add_task("", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield report
