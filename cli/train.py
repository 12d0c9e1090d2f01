"""`dflash-mlx train`: a draft for a target; all of it, or a stage."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dflash_mlx.errors import UsageError

from .options import flags, option
from .train_options import (
    DataOptions,
    DraftOptions,
    EvaluationOptions,
    FitOptions,
    TargetOptions,
    settings_of,
)
from .train_view import View

if TYPE_CHECKING:
    from dflash_mlx.train.project import Project
    from dflash_mlx.train.settings import Settings

EXAMPLES = """Examples:
  dflash-mlx train Qwen3-4B --prompts prompts.jsonl --out qwen3-4b-draft
  dflash-mlx train --out qwen3-4b-draft --resume
  dflash-mlx train generate Qwen3-4B --prompts prompts.jsonl --out qwen3-4b-draft
  dflash-mlx train fit qwen3-4b-draft
  dflash-mlx train evaluate qwen3-4b-draft --count 100 --json
  mlx.launch -n 2 dflash-mlx train fit qwen3-4b-draft"""
ALL = "run"


class Stages(TyperGroup):
    """Takes a model's name in the place of a stage, and runs all of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [ALL, *args]
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class Shown:
    """How a stage reports."""

    json: Annotated[bool, option("Output", "--json", help="Print one JSON object")] = False
    quiet: Annotated[bool, option("Output", "--quiet", "-q", help="Show no progress")] = False


@dataclass(frozen=True)
class FolderArgument:
    """A training that was begun."""

    folder: Annotated[Path, typer.Argument(help="The training's folder", metavar="DIR")]


@dataclass(frozen=True)
class Where:
    """Where a training stands."""

    out: Annotated[
        Path, option("Training", "--out", "-o", help="Folder of the training", metavar="DIR")
    ]
    settings: Annotated[
        Path | None,
        option("Training", "--settings", help="Settings in TOML; options come first", metavar="F"),
    ] = None
    resume: Annotated[
        bool, option("Training", "--resume", help="Go on with the training in that folder")
    ] = False


@dataclass(frozen=True)
class Counted:
    """How much is decoded."""

    count: Annotated[
        int, option("Evaluation", "--count", help="Held-out prompts to decode", metavar="N")
    ] = 100


def run(
    where: Where,
    target: TargetOptions,
    data: DataOptions,
    draft: DraftOptions,
    fit: FitOptions,
    evaluation: EvaluationOptions,
    shown: Shown,
) -> None:
    """Make a draft for MODEL: answers to the prompts, features, fit.

    Stops anywhere and goes on with --resume. The draft is in DIR/draft, how it
    came there in DIR/curve.html.
    """
    project = begun(where, settings_of(where.settings, target, data, draft, fit, evaluation))
    view = View(shown.quiet)
    _generate(project, view)
    _features(project, view)
    _fit(project, view, shown)


def generate(
    where: Where,
    target: TargetOptions,
    data: DataOptions,
    draft: DraftOptions,
    fit: FitOptions,
    evaluation: EvaluationOptions,
    shown: Shown,
) -> None:
    """Begin a training and let the target answer its prompts."""
    project = begun(where, settings_of(where.settings, target, data, draft, fit, evaluation))
    _generate(project, View(shown.quiet))


def features(where: FolderArgument, shown: Shown) -> None:
    """Store the target's hidden states on its answers."""
    _features(opened(where.folder), View(shown.quiet))


def fit(where: FolderArgument, shown: Shown) -> None:
    """Train, from the last state if there is one; several processes under mlx.launch."""
    _fit(opened(where.folder), View(shown.quiet), shown)


def evaluate(where: FolderArgument, counted: Counted, shown: Shown) -> None:
    """Decode held-out prompts with the trained draft, by kind, beside lookup and n-grams."""
    project = opened(where.folder)
    view = View(shown.quiet)
    with view.bar("decoding", counted.count) as advance:
        found = project.evaluate(counted.count, advance)
    if shown.json:
        typer.echo(jsonlib.dumps(found.as_dict(), ensure_ascii=False))
    else:
        view.table(found)


def begun(where: Where, settings: Settings | None) -> Project:
    """The project in a folder: a new one, or the one that is there if it is to go on."""
    from dflash_mlx.train.settings import FILE

    if (where.out / FILE).is_file():
        if not where.resume:
            raise UsageError(f"{where.out} holds a training; go on with --resume, or name another")
        if settings is not None:
            raise UsageError(f"settings come from {where.out / FILE}; leave out what --resume has")
        return opened(where.out)
    if where.resume:
        raise UsageError(f"{where.out} holds no training to resume")
    if settings is None:
        raise UsageError("name a model and --prompts, or a file with --settings")
    from dflash_mlx.train.project import Project

    project = Project(where.out, settings)
    project.check()
    where.out.mkdir(parents=True, exist_ok=True)
    settings.write(where.out)
    return project


def opened(folder: Path) -> Project:
    """The project in a folder."""
    from dflash_mlx.train.project import Project
    from dflash_mlx.train.settings import FILE, read_settings

    return Project(folder, read_settings(folder / FILE))


def _generate(project: Project, view: View) -> None:
    _alone()
    with view.bar("answering", None) as advance:
        for tally in project.generate():
            advance(tally.done, tally.total, view.tally(tally))


def _features(project: Project, view: View) -> None:
    _alone()
    if not project.settings.fit.store:
        return
    view.say(f"features take {project.feature_bytes / 1e9:.2f} GB in {project.folder}/features")
    with view.bar("features", None) as advance:
        for done, total in project.store_features():
            advance(done, total)


def _alone() -> None:
    from dflash_mlx.train.distributed import Group

    if Group().size > 1:
        raise UsageError("only `train fit` runs in several processes; run the other stages alone")


def _fit(project: Project, view: View, shown: Shown) -> None:
    from dflash_mlx.train.distributed import Group

    group = Group()
    with view.fitting(group.leads) as watch:
        end = project.fit(watch, group)
    if not group.leads:
        return
    project.draw_curve()
    found = {
        "draft": str(project.folder / "draft"),
        "steps": end.step,
        "tokens_per_round": round(end.best, 4) or None,
    }
    if shown.json:
        typer.echo(jsonlib.dumps(found))
    else:
        view.end(found)


train = typer.Typer(
    name="train",
    cls=Stages,
    help="Make a draft for a target.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train.command(name=ALL, epilog=EXAMPLES)(flags(run))
for stage in (generate, features, fit, evaluate):
    train.command()(flags(stage))
