"""`dflash-mlx bench SET ...`: decoding with and without a draft, on sets of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .bench_endpoint import EndpointOptions, measure_endpoint
from .bench_options import (
    DrawOptions,
    MeasureOptions,
    PairsOptions,
    ReportOptions,
    settings,
)
from .bench_report import Report
from .options import option
from .render import Screen
from .several import ShardOptions, follow

if TYPE_CHECKING:
    from dflash_mlx.bench.data.problems import Problems
    from dflash_mlx.bench.run import Plan
    from dflash_mlx.loading import Pair

EXAMPLES = """Examples:
  dflash-mlx bench gsm8k
  dflash-mlx bench gsm8k humaneval -m Qwen3-4B --bits 4 --block 4,8,auto --run-code
  dflash-mlx bench mt-bench --baseline plain --baseline mlx-lm --json run.json --html run.html
  dflash-mlx bench gsm8k --limit 100 --resume run.json
  dflash-mlx bench gsm8k --endpoint http://localhost:8080/v1 --endpoint-model NAME"""


def _problems(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Prompts", *names, help=help, metavar=metavar)


@dataclass(frozen=True)
class SetOptions:
    """Which prompts."""

    sets: Annotated[
        list[str] | None,
        typer.Argument(help="Sets of prompts: gsm8k, ...", metavar="SET", show_default=False),
    ] = None
    data: Annotated[
        Path | None,
        _problems("--data", help="Prompts of your own, one JSON object a line", metavar="FILE"),
    ] = None
    limit: Annotated[
        int, _problems("--limit", help="Prompts of each set, 0 for all", metavar="N")
    ] = 8
    offline: Annotated[
        bool, _problems("--offline", help="Take what is here, at least a small sample of ours")
    ] = False
    run_code: Annotated[
        bool,
        _problems("--run-code", help="Run programs that the model writes, to score them"),
    ] = False

    def __post_init__(self) -> None:
        if not self.sets and self.data is None:
            raise typer.BadParameter("name a set of prompts, or a file with --data")
        if self.limit < 0:
            raise typer.BadParameter("--limit counts prompts; it cannot be negative")

    def load(self, seed: int, quiet: bool) -> list[Problems]:
        """Every set, and the file."""
        from dflash_mlx.bench.data.sets import load_problems, read_problems

        limit = self.limit or None
        found = [
            load_problems(name, offline=self.offline, limit=limit, seed=seed, quiet=quiet)
            for name in dict.fromkeys(self.sets or ())
        ]
        if self.data is not None:
            found.append(read_problems(self.data, limit=limit, seed=seed))
        return found


def run(
    prompts: SetOptions,
    model: PairsOptions,
    measure: MeasureOptions,
    sampling: DrawOptions,
    server: EndpointOptions,
    out: ReportOptions,
    several: ShardOptions,
) -> None:
    """Measure decoding with and without a draft on sets of prompts.

    Every prompt is answered in every way in turn, in one process. The answers
    are compared: a speed-up is shown only where they are the same, or differ
    where two tokens are tied within rounding; exits 1 otherwise. Ctrl-C keeps
    what was measured.
    """
    from dflash_mlx.bench.data.scoring import needs_code
    from dflash_mlx.bench.recording import Recording, set_entry

    ranks = several.join()
    if not ranks.leads:
        if not server.endpoint:
            follow(ranks, *(partial(each.load, True, ranks) for each in model.subjects()))
        return
    if server.endpoint:
        server.check(model, measure, sampling, out)
    problems = ranks.together(lambda: prompts.load(sampling.seed, out.quiet))
    for each in problems:
        if needs_code(each) and not prompts.run_code:
            Screen(quiet=out.quiet).note(
                f"{each.dataset}: answers are programs; --run-code runs them, to score them"
            )
    if server.endpoint:
        measure_endpoint(server, problems, measure, sampling, prompts.run_code, out)
        return
    subjects = model.subjects()
    asked = settings(subjects, measure, sampling, ranks) | {"run_code": prompts.run_code}
    report = Report(Recording("sets", asked, [set_entry(each) for each in problems]), out)
    plan = measure.plan(sampling, prompts.run_code)
    count = sum(len(each.items) for each in problems) * plan.repeat
    with report.running(count * len(subjects)):
        # One pair after the other: two large ones would not fit together.
        for subject in subjects:
            report.say(f"loading {subject.model}")
            pair = subject.load(out.quiet, ranks)
            with ranks.lead():
                measure_pair(pair, subject.name, problems, measure, plan, report)
            del pair


def measure_pair(
    pair: Pair,
    name: str,
    problems: Sequence[Problems],
    measure: MeasureOptions,
    plan: Plan,
    report: Report,
) -> None:
    """Measure one pair on every set."""
    from dflash_mlx.bench.run import arms_for, run

    arms = arms_for(pair, measure.baselines, measure.blocks)
    report.loaded(name, pair, arms)
    for each in problems:
        report.say(f"{name}: {each.dataset}")
        for answers in run(pair, name, arms, each, plan, report.recording.done):
            report.add(answers)
        if report.recording.kind == "sets" and pair.ranks.size == 1:
            report.split(pair, name, arms, each, plan)
