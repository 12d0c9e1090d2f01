"""Options of the benchmarks that decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dflash_mlx.pairs import EMBEDDED
from dflash_mlx.span import SINK

from .options import (
    Bits,
    ComputedIn,
    DraftSink,
    DraftWindow,
    KernelUse,
    KvGroupSize,
    SamplingOptions,
    Use,
    option,
)

if TYPE_CHECKING:
    from dflash_mlx.bench.records import Block
    from dflash_mlx.bench.run import Plan
    from dflash_mlx.loading import Pair
    from dflash_mlx.ranks import Ranks

BASELINES = ("plain", "mlx-lm")


def _model(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Model", *names, help=help, metavar=metavar)


def _measured(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Measurement", *names, help=help, metavar=metavar)


def _output(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Output", *names, help=help, metavar=metavar)


@dataclass(frozen=True)
class Subject:
    """A pair to be loaded and measured."""

    name: str
    model: str
    draft: str | None
    bits: int | None
    draft_bits: int | None
    dtype: str | None
    kernels: str
    kv_bits: int | None
    draft_kv_bits: int | None
    kv_group_size: int
    draft_window: int | None
    draft_sink: int

    def load(self, quiet: bool, ranks: Ranks) -> Pair:
        """Load it, or this rank's part of it."""
        from dflash_mlx.loading import load

        return load(
            self.model,
            self.draft,
            bits=self.bits,
            draft_bits=self.draft_bits,
            dtype=self.dtype,
            kernels=self.kernels,
            kv_bits=self.kv_bits,
            draft_kv_bits=self.draft_kv_bits,
            kv_group_size=self.kv_group_size,
            draft_window=self.draft_window,
            draft_sink=self.draft_sink,
            quiet=quiet,
            ranks=ranks,
        )


@dataclass(frozen=True)
class PairsOptions:
    """Which pairs, and how they are loaded."""

    model: Annotated[
        list[str] | None,
        _model(
            "--model",
            "-m",
            help=f"Target, repeatable: a short name, a hub id or a folder; {EMBEDDED} by default",
            metavar="NAME",
        ),
    ] = None
    draft: Annotated[
        list[str] | None,
        _model(
            "--draft",
            "-d",
            help="Draft, repeatable: several for one target, or one for each; not for known pairs",
            metavar="NAME",
        ),
    ] = None
    bits: Annotated[Bits | None, _model("--bits", help="Quantise targets while loading")] = None
    draft_bits: Annotated[
        Bits | None, _model("--draft-bits", help="Quantise drafts while loading")
    ] = None
    kv_bits: Annotated[
        Bits | None, _model("--kv-bits", help="Keep targets' keys and values in so many bits")
    ] = None
    draft_kv_bits: Annotated[
        Bits | None, _model("--draft-kv-bits", help="Keep drafts' keys and values in so many bits")
    ] = None
    kv_group_size: KvGroupSize = 64
    draft_window: DraftWindow = None
    draft_sink: DraftSink = SINK
    dtype: ComputedIn = None
    kernels: KernelUse = "auto"

    def subjects(self) -> list[Subject]:
        """Every pair, with names that tell them apart."""
        models, drafts = self.model or [EMBEDDED], self.draft or []
        if len(models) == 1 and drafts:
            models *= len(drafts)
        if drafts and len(drafts) != len(models):
            raise typer.BadParameter(
                f"{len(models)} models and {len(drafts)} drafts; give one model and its drafts, "
                "or as many drafts as models"
            )
        chosen: Sequence[str | None] = drafts or [None] * len(models)
        pairs = list(zip(models, chosen, strict=True))
        if len(set(pairs)) < len(pairs):
            raise typer.BadParameter("a pair is named twice; name each once")
        return [self._subject(m, d, models.count(m) > 1) for m, d in pairs]

    def _subject(self, model: str, draft: str | None, shared: bool) -> Subject:
        return Subject(
            name=f"{model} + {draft}" if shared else model,
            model=model,
            draft=draft,
            bits=int(self.bits) if self.bits else None,
            draft_bits=int(self.draft_bits) if self.draft_bits else None,
            dtype=self.dtype,
            kernels=self.kernels,
            kv_bits=int(self.kv_bits) if self.kv_bits else None,
            draft_kv_bits=int(self.draft_kv_bits) if self.draft_kv_bits else None,
            kv_group_size=self.kv_group_size,
            draft_window=self.draft_window,
            draft_sink=self.draft_sink,
        )


@dataclass(frozen=True)
class DrawOptions(SamplingOptions):
    """How tokens are chosen; the seed has a value, so that a run can be repeated."""

    seed: Annotated[
        int,
        option(
            "Sampling",
            "--seed",
            help="Of the choice of prompts and of sampled answers",
            metavar="N",
        ),
    ] = 0


def _block(text: str) -> Block | None:
    """A block size, or auto; None for anything else."""
    if text == "auto":
        return "auto"
    return int(text) if text.isdecimal() and 2 <= int(text) <= 64 else None


@dataclass(frozen=True)
class MeasureOptions:
    """How each prompt is answered."""

    block: Annotated[
        str | None,
        _measured(
            "--block",
            help="Tokens verified per round, several as in 4,8,auto; by default the draft's own",
            metavar="N,...",
        ),
    ] = None
    lookup: Annotated[
        Use,
        _measured(
            "--lookup",
            help="Drafts copied from the text so far: auto with block auto, on with any, off",
            metavar="WHEN",
        ),
    ] = "auto"
    baseline: Annotated[
        list[str] | None,
        _measured(
            "--baseline",
            help="What to compare with, repeatable, the first one counts: plain is our loop "
            "without a draft, mlx-lm its own",
            metavar="NAME",
        ),
    ] = None
    max_tokens: Annotated[
        int, _measured("--max-tokens", "-n", help="Most tokens of an answer", metavar="N")
    ] = 128
    repeat: Annotated[int, _measured("--repeat", help="Passes over all prompts", metavar="N")] = 1
    think: Annotated[
        bool | None, _measured("--think/--no-think", help="Whether a model that can think should")
    ] = None

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise typer.BadParameter("--max-tokens needs 2 at least: the first is never drafted")
        if self.repeat < 1:
            raise typer.BadParameter("--repeat needs 1 at least")
        unknown = [name for name in self.baseline or () if name not in BASELINES]
        if unknown:
            raise typer.BadParameter(f"--baseline {unknown[0]!r} is none of {', '.join(BASELINES)}")

    @property
    def blocks(self) -> list[Block]:
        """Every block size; none for the draft's own."""
        parts = [part.strip() for part in (self.block or "").split(",") if part.strip()]
        blocks = [_block(part) for part in parts]
        if None in blocks or (self.block and not blocks):
            raise typer.BadParameter(
                f"{self.block!r} is not a list of numbers from 2 to 64 and auto, as in 4,8,auto",
                param_hint="--block",
            )
        return list(dict.fromkeys(block for block in blocks if block))

    @property
    def baselines(self) -> list[str]:
        """What to compare with, the first counts."""
        return list(dict.fromkeys(self.baseline or ["plain"]))

    def plan(self, sampling: DrawOptions, run_code: bool = False) -> Plan:
        """The library's form of these options."""
        from dflash_mlx.bench.run import Plan

        return Plan(
            max_tokens=self.max_tokens,
            sampling=sampling.sampling(),
            lookup=self.lookup,
            seed=sampling.seed,
            repeat=self.repeat,
            think=self.think,
            run_code=run_code,
        )


@dataclass(frozen=True)
class ReportOptions:
    """Where results go."""

    json: Annotated[
        Path | None,
        _output("--json", help="Write everything, after every prompt", metavar="FILE"),
    ] = None
    markdown: Annotated[
        Path | None, _output("--markdown", help="Write the tables", metavar="FILE")
    ] = None
    html: Annotated[
        Path | None, _output("--html", help="Write one page with plots", metavar="FILE")
    ] = None
    resume: Annotated[
        Path | None,
        _output("--resume", help="Go on with the --json file of the same command", metavar="FILE"),
    ] = None
    quiet: Annotated[bool, _output("--quiet", "-q", help="Show no progress")] = False

    def __post_init__(self) -> None:
        if self.resume and self.json and self.resume != self.json:
            raise typer.BadParameter("--resume goes on writing its own file; leave out --json")
        for path in (self.json, self.markdown, self.html):
            if path and not path.absolute().parent.is_dir():
                raise typer.BadParameter(f"{path} cannot be written: {path.parent} is no folder")

    @property
    def record(self) -> Path | None:
        """The file that is written after every prompt."""
        return self.resume or self.json


def settings(
    subjects: Sequence[Subject],
    measure: MeasureOptions,
    sampling: DrawOptions,
    ranks: Ranks,
) -> dict[str, Any]:
    """What has to be the same for a run to be gone on with."""
    shared = {"ranks": ranks.description} if ranks.size > 1 else {}
    return {
        **shared,
        "pairs": [asdict(subject) for subject in subjects],
        "blocks": measure.blocks,
        "lookup": measure.lookup,
        "baselines": measure.baselines,
        "max_tokens": measure.max_tokens,
        "repeat": measure.repeat,
        "think": measure.think,
        "sampling": asdict(sampling),
    }
