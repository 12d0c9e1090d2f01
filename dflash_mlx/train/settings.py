"""Everything a training depends on, as frozen values that are written to and read from one file."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..config import CANDIDATES
from ..errors import UsageError
from .tables import parse, to_toml

FILE = "train.toml"
HEADER = "# Written by dflash-mlx train; `--resume` reads it.\n"


@dataclass(frozen=True)
class TargetSettings:
    """The target, loaded as it will serve.

    Attributes:
        think: whether a model that can think should; unset leaves it to the template.
    """

    model: str
    bits: int | None = None
    dtype: str | None = None
    revision: str | None = None
    think: bool | None = None


@dataclass(frozen=True)
class DataSettings:
    """Prompts and how they are answered.

    Attributes:
        prompts: the file.
        heldout: share of the prompts that is kept from training, chosen by their hashes.
        max_tokens: at most this many a text.
        batch: texts written at once.
    """

    prompts: str
    heldout: float = 0.02
    max_tokens: int = 512
    batch: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check("heldout", self.heldout, 0, 0.5)
        _check("max_tokens", self.max_tokens, 2)
        _check("batch", self.batch, 1)


@dataclass(frozen=True)
class DraftSettings:
    """The network; what is unset follows from the target.

    Attributes:
        start: "target" copies the target's last layers, "random" none; a name or folder of a draft
            goes on from that one, and nothing else here may be set.
        block_size: rows of a block, anchor included.
        taps: how many layers of the target it reads, or which.
        mask_token: an id that no text contains.
        window: sliding window of all layers; unset lets them see everything.
        dflash2: whether it has convolutions and a selector.
        convolutions: of DFlash 2; without them only the selector is added.
        selector_rank: of DFlash 2, the width of the selector's codebooks.
        vocabulary: how many tokens it can propose, those that the texts have most of; unset lets
            it propose all. The head is the larger part of a small draft's pass.
    """

    start: str = "target"
    layers: int = 5
    block_size: int = 8
    taps: tuple[int, ...] = ()
    mask_token: int | None = None
    intermediate_size: int | None = None
    window: int | None = None
    dflash2: bool = False
    convolutions: bool = True
    selector_rank: int = 256
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        if not self.fresh and replace(self, start="target") != DraftSettings():
            raise UsageError(f"{self.start} has a shape of its own; set nothing else of the draft")
        if not self.dflash2 and (not self.convolutions or self.selector_rank != 256):
            raise UsageError("convolutions and selector_rank are DFlash 2's; set dflash2, too")
        _check("layers", self.layers, 1)
        _check("selector_rank", self.selector_rank, 1)
        _check("block_size", self.block_size, 2, 64)
        if self.vocabulary is not None:
            _check("vocabulary", self.vocabulary, CANDIDATES)

    @property
    def fresh(self) -> bool:
        """Whether a new network is made."""
        return self.start in ("target", "random")


@dataclass(frozen=True)
class FitSettings:
    """The objective and the optimiser.

    Attributes:
        epochs: passes over the texts, each with anchors of its own.
        steps: ends the training sooner; the schedule of the learning rate ends with it.
        anchors: blocks per text and epoch, at most.
        pack_tokens: context tokens that run through the network at once.
        packs: packs of a step, over all processes.
        loss: "exponential" or "dpace", see `loss.Weighting`; `gamma` and `alpha` are theirs.
        negatives: tokens that compete with the labels of a pack; 0 lets all compete.
        store: whether features are kept on disk between epochs or computed again in each.
        train: "all", "fc" or "lora".
        save_memory: compute layers twice instead of keeping what their gradients need.
        logits_mb: memory that logits may take.
        dtype: what the network computes in; parameters are float32 either way.
        save_every: steps between two states that a resumed run can start from.
    """

    epochs: int = 6
    steps: int | None = None
    learning_rate: float = 6e-4
    warmup: float = 0.04
    floor: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.95)
    clip: float = 1.0
    anchors: int = 512
    pack_tokens: int = 2048
    packs: int = 4
    loss: str = "exponential"
    gamma: float = 4.0
    alpha: float = 0.5
    negatives: int = 0
    store: bool = True
    train: str = "all"
    lora_rank: int = 16
    save_memory: bool = False
    logits_mb: int = 1024
    dtype: str = "float32"
    seed: int = 0
    save_every: int = 100

    def __post_init__(self) -> None:
        _choice("loss", self.loss, ("exponential", "dpace"))
        _choice("train", self.train, ("all", "fc", "lora"))
        _choice("dtype", self.dtype, ("float32", "bfloat16"))
        for name in ("epochs", "anchors", "pack_tokens", "packs", "save_every", "lora_rank"):
            _check(name, getattr(self, name), 1)
        _check("warmup", self.warmup, 0, 1)
        _check("learning_rate", self.learning_rate, 0)
        _check("gamma", self.gamma, 1e-3)
        if len(self.betas) != 2:
            raise UsageError(f"betas is {list(self.betas)}, expected two numbers")


@dataclass(frozen=True)
class EvaluationSettings:
    """Decoding of held-out prompts.

    Attributes:
        every: steps between two evaluations; 0 evaluates at the end alone.
        count: prompts that are decoded.
        patience: evaluations without a better one after which training ends; 0 never ends it.
    """

    every: int = 500
    count: int = 24
    max_tokens: int = 128
    patience: int = 0

    def __post_init__(self) -> None:
        _check("every", self.every, 0)
        _check("count", self.count, 1)
        _check("max_tokens", self.max_tokens, 2)
        _check("patience", self.patience, 0)


@dataclass(frozen=True)
class Settings:
    """All of it, a section of the file each."""

    target: TargetSettings
    data: DataSettings
    draft: DraftSettings = field(default_factory=DraftSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        if self.draft.fresh and self.fit.train != "all":
            raise UsageError(
                f"train is {self.fit.train!r}, but a new draft has nothing to keep; name one with "
                "`start` or train all of it"
            )

    def write(self, folder: Path) -> None:
        """Write the file, whole or not at all."""
        temporary = folder / f".{FILE}"
        temporary.write_text(HEADER + to_toml(asdict(self)), encoding="utf-8")
        temporary.replace(folder / FILE)


def read_settings(path: Path) -> Settings:
    """Read a file that `Settings.write` wrote or a person.

    Raises:
        UsageError: it cannot be read, or a setting is unknown or of the wrong type.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML file: {error}") from error
    return parse(Settings, raw, str(path))


def _check(name: str, value: float, low: float, high: float | None = None) -> None:
    if value < low or (high is not None and value > high):
        limits = f"{low} or more" if high is None else f"{low} to {high}"
        raise UsageError(f"{name} is {value}, expected {limits}")


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{name} is {value!r}, expected one of {', '.join(known)}")
