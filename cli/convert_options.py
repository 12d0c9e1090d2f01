"""The options of `dflash-mlx convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import Dtype, option

if TYPE_CHECKING:
    from dflash_mlx.convert.recipe import DraftRecipe, TargetRecipe
    from dflash_mlx.convert.run import Parts

Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4"]
Recipe = Literal["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"]
DEFAULT_DRAFT_BITS = 8  # where the target is quantised; see docs/convert.md


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
        chosen = [name for name, value in stated.items() if value is not None]
        if parts == "draft":
            if chosen:
                raise typer.BadParameter(f"{chosen[0]} is the target's; the draft has --draft-bits")
            return TargetRecipe()
        if self.group_size and not chosen and not self.draft_bits:
            raise typer.BadParameter("--group-size needs bits, a mode or a recipe")
        size = self.group_size if chosen else None
        return TargetRecipe(self.bits, size, self.mode or "affine", self.recipe, self.dtype)

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
