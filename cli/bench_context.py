"""`dflash-mlx bench context`: decoding over the length of the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .bench_options import DrawOptions, MeasureOptions, PairsOptions, ReportOptions, settings
from .bench_report import Report
from .bench_run import measure_pair
from .options import option
from .several import ShardOptions, follow

if TYPE_CHECKING:
    from dflash_mlx.bench.data.problems import Problems

EXAMPLES = """Examples:
  dflash-mlx bench context
  dflash-mlx bench context mt-bench -m Qwen3-4B --max-context 32768 --html context.html"""


def _lengths(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Prompts", *names, help=help, metavar=metavar)


@dataclass(frozen=True)
class LengthOptions:
    """How long prompts are, and what they are made of."""

    set_: Annotated[
        str, typer.Argument(help="Set whose prompts are strung together", metavar="SET")
    ] = "gsm8k"
    data: Annotated[
        Path | None,
        _lengths("--data", help="Prompts of your own instead", metavar="FILE"),
    ] = None
    max_context: Annotated[
        int,
        _lengths("--max-context", help="Most tokens of a prompt, as far as fits", metavar="N"),
    ] = 8192
    texts: Annotated[int, _lengths("--texts", help="Prompts of each length", metavar="N")] = 2
    offline: Annotated[
        bool, _lengths("--offline", help="Take what is here, at least a small sample of ours")
    ] = False

    def __post_init__(self) -> None:
        if self.texts < 1:
            raise typer.BadParameter("--texts needs 1 at least")

    def load(self, seed: int, quiet: bool) -> Problems:
        """The set."""
        from dflash_mlx.bench.data.sets import load_problems, read_problems

        if self.data is not None:
            return read_problems(self.data, seed=seed)
        return load_problems(self.set_, offline=self.offline, seed=seed, quiet=quiet)


@dataclass(frozen=True)
class ShortOptions(MeasureOptions):
    """How each prompt is answered: briefly, so that its length stays what it is."""

    max_tokens: Annotated[
        int,
        option("Measurement", "--max-tokens", "-n", help="Most tokens of an answer", metavar="N"),
    ] = 64


def context(
    where: LengthOptions,
    model: PairsOptions,
    measure: ShortOptions,
    sampling: DrawOptions,
    out: ReportOptions,
    several: ShardOptions,
) -> None:
    """Measure decoding with and without a draft over the length of the prompt.

    Prompts of 1024, 2048, 4096, ... tokens are made of those of a set, up to
    --max-context or what the model takes.
    """
    from dflash_mlx.bench.context import lengths, of_length
    from dflash_mlx.bench.recording import Recording, set_entry

    subjects = model.subjects()
    if len(subjects) > 1:
        raise typer.BadParameter("context measures one pair; give one --model and one --draft")
    ranks = several.join()
    if not ranks.leads:
        follow(ranks, lambda: subjects[0].load(True, ranks))
        return
    source = ranks.together(lambda: where.load(sampling.seed, out.quiet))
    pair = subjects[0].load(out.quiet, ranks)
    sizes = lengths(min(where.max_context, pair.max_context - measure.max_tokens))
    problems = [of_length(pair, source, size, where.texts, measure.think) for size in sizes]
    asked = settings(subjects, measure, sampling, ranks)
    report = Report(Recording("context", asked, [set_entry(each) for each in problems]), out)
    with ranks.lead(), report.running(len(sizes) * where.texts * measure.repeat):
        measure_pair(pair, subjects[0].name, problems, measure, measure.plan(sampling), report)
