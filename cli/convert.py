"""`dflash-mlx convert`: target and draft to MLX, in few bits."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from .convert_options import CalibrationOptions, OutputOptions, SourceOptions, WeightOptions
from .convert_report import calibrated, lines, made, planned
from .render import Screen

if TYPE_CHECKING:
    from dflash_mlx.convert.calibrate import Calibration
    from dflash_mlx.convert.run import Request

EXAMPLES = """Examples:
  dflash-mlx convert Qwen3.5-9B --bits 4 --out qwen3.5-9b-4bit
  dflash-mlx convert Qwen/Qwen3-8B --mode mxfp4 --target-only --out qwen3-8b-mxfp4
  dflash-mlx convert z-lab/Qwen3-8B-DFlash-b16 --draft-only --draft-bits 8 --out draft-8bit
  dflash-mlx convert model.gguf --draft drafter.gguf --bits 4 --out pair
  dflash-mlx convert smollm2-135m --bits 8 --calibrate 4 --out smollm2
  dflash-mlx convert Qwen3-8B --bits 4 --out qwen3-8b-4bit --dry-run"""


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
    try:
        with _bar(screen) as report:
            job.write(report)
    except KeyboardInterrupt:
        screen.note("interrupted; the same command goes on from here")
        raise
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
