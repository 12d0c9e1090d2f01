"""The options of a training, each a setting of `train.toml`; what is not given is left to it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import Bits, Dtype, option

if TYPE_CHECKING:
    from dflash_mlx.train.settings import Settings


def _of(panel: str, name: str, help: str, metavar: str | None = "N") -> Any:
    return option(panel, name, help=help, metavar=metavar)


@dataclass(frozen=True)
class TargetOptions:
    """Section [target]."""

    model: Annotated[
        str | None, typer.Argument(help="Target: a short name, a hub id or a folder")
    ] = None
    bits: Annotated[Bits | None, _of("Target", "--bits", "Quantise it while loading", None)] = None
    dtype: Annotated[
        Dtype | None, _of("Target", "--dtype", "Type it computes and will serve in", "TYPE")
    ] = None
    revision: Annotated[
        str | None, _of("Target", "--revision", "Branch, tag or commit on the hub", "NAME")
    ] = None
    think: Annotated[
        bool | None, _of("Target", "--think/--no-think", "Whether it thinks first", None)
    ] = None


@dataclass(frozen=True)
class DataOptions:
    """Section [data]."""

    prompts: Annotated[
        str | None, _of("Data", "--prompts", "Prompts: .jsonl, .json or .txt", "FILE")
    ] = None
    heldout: Annotated[float | None, _of("Data", "--heldout", "Share kept from training", "X")] = (
        None
    )
    max_tokens: Annotated[int | None, _of("Data", "--max-tokens", "Most tokens of an answer")] = (
        None
    )
    batch: Annotated[int | None, _of("Data", "--batch", "Answers written at once")] = None
    temperature: Annotated[float | None, _of("Data", "--temperature", "0 is greedy", "X")] = None
    top_p: Annotated[float | None, _of("Data", "--top-p", "As in chat", "X")] = None
    top_k: Annotated[int | None, _of("Data", "--top-k", "As in chat")] = None
    min_p: Annotated[float | None, _of("Data", "--min-p", "As in chat", "X")] = None


@dataclass(frozen=True)
class DraftOptions:
    """Section [draft]."""

    start: Annotated[
        str | None,
        _of("Draft", "--start", "target, random, or a draft to train further", "NAME"),
    ] = None
    layers: Annotated[int | None, _of("Draft", "--layers", "Layers of a new draft")] = None
    block_size: Annotated[
        int | None, _of("Draft", "--block", "Rows of a block, the anchor included")
    ] = None
    dflash2: Annotated[
        bool | None, _of("Draft", "--dflash2", "With convolutions and a selector", None)
    ] = None
    vocabulary: Annotated[
        int | None, _of("Draft", "--draft-vocabulary", "Tokens it can propose; by default all")
    ] = None


@dataclass(frozen=True)
class FitOptions:
    """Section [fit]."""

    epochs: Annotated[int | None, _of("Fit", "--epochs", "Passes over the texts")] = None
    steps: Annotated[int | None, _of("Fit", "--steps", "Steps, if fewer")] = None
    learning_rate: Annotated[float | None, _of("Fit", "--lr", "Highest learning rate", "X")] = None
    anchors: Annotated[int | None, _of("Fit", "--anchors", "Blocks per text and epoch")] = None
    pack_tokens: Annotated[int | None, _of("Fit", "--pack", "Context tokens at once")] = None
    packs: Annotated[int | None, _of("Fit", "--packs", "Packs of a step")] = None
    loss: Annotated[
        Literal["exponential", "dpace"] | None,
        _of("Fit", "--loss", "Weights of a block's rows", None),
    ] = None
    negatives: Annotated[
        int | None, _of("Fit", "--negatives", "Tokens that compete with labels, 0 for all")
    ] = None
    store: Annotated[
        bool | None, _of("Fit", "--store/--no-store", "Keep features on disk", None)
    ] = None
    train: Annotated[
        Literal["all", "fc", "lora"] | None,
        _of("Fit", "--only", "What to train of a draft that exists", None),
    ] = None
    save_memory: Annotated[
        bool | None, _of("Fit", "--save-memory", "Compute layers twice", None)
    ] = None
    save_every: Annotated[
        int | None, _of("Fit", "--save-every", "Steps between states to resume from")
    ] = None


@dataclass(frozen=True)
class EvaluationOptions:
    """Section [evaluation]."""

    every: Annotated[
        int | None, _of("Evaluation", "--eval-every", "Steps between evaluations, 0 for none")
    ] = None
    count: Annotated[
        int | None, _of("Evaluation", "--eval-prompts", "Held-out prompts to decode")
    ] = None
    patience: Annotated[
        int | None, _of("Evaluation", "--patience", "Evaluations without a better one, then end")
    ] = None


def settings_of(
    file: Path | None,
    target: TargetOptions,
    data: DataOptions,
    draft: DraftOptions,
    fit: FitOptions,
    evaluation: EvaluationOptions,
) -> Settings | None:
    """What the file and the options say; None where they say nothing at all."""
    import tomllib

    from dflash_mlx.errors import UsageError
    from dflash_mlx.train.settings import Settings
    from dflash_mlx.train.tables import parse

    try:
        raw: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as TOML: {error}") from error
    sections: dict[str, Any] = {
        "target": target,
        "data": data,
        "draft": draft,
        "fit": fit,
        "evaluation": evaluation,
    }
    for name, group in sections.items():
        given = {f.name: getattr(group, f.name) for f in fields(group)}
        given = {k: _plain(k, v) for k, v in given.items() if v is not None}
        if given:
            raw[name] = raw.get(name, {}) | given
    return parse(Settings, raw, str(file or "options")) if raw else None


def _plain(name: str, value: Any) -> Any:
    """An option as the file has it: a training goes on from any folder, so paths are whole."""
    if name == "prompts":
        return str(Path(value).expanduser().resolve())
    return int(value) if name == "bits" else value
