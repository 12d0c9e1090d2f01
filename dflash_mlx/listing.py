"""The table of pairs with what each takes: on disk, in memory, and whether it is here."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import catalog, pairs
from .downloads import Download, hub_cache, in_cache, read
from .embedded import SMOLLM2, embedded_draft
from .errors import ModelNotFoundError
from .footprint import DraftShape, Estimate, Kept, Weights
from .machine import Machine
from .pairs import Known
from .paths import cache_root

WIDEST = 16  # block of a draft whose own is not known
# Families whose keys and values are not quantised; `Target.unquantised` says why.
UNQUANTISED = ("gpt_oss", "kimi_k25", "glm_moe_dsa")
PRECISIONS: tuple[int | None, ...] = (None, 8, 4)  # None: as published


@dataclass(frozen=True)
class Wanted:
    """What the memory is asked for.

    Attributes:
        context: tokens of prompt and answer together.
        bits: precision of the target; None as it is stored.
        draft_bits: the same for the draft.
        kv: how the target's keys and values are kept; None in the type that is computed in.
    """

    context: int
    bits: int | None = None
    draft_bits: int | None = None
    kv: Kept | None = None


@dataclass(frozen=True)
class Pick:
    """A pair, and which files of it are meant.

    Attributes:
        model: what `-m` is given for it.
        target: the target's files; None where there are none.
        copies: every download that finds this pair by its name, quantised ones too.
    """

    known: Known
    model: str
    target: Download | None = None
    draft: Download | None = None
    copies: tuple[Download, ...] = ()

    @property
    def published(self) -> Weights:
        """The target's weights as the hub has them."""
        return catalog.TARGETS[self.known.target].weights

    @property
    def target_size(self) -> catalog.TargetSize:
        """By the files, else by the catalog."""
        listed = catalog.TARGETS[self.known.target]
        if self.target is None or not is_here(self.target):
            return listed
        weights = self.target.weights(listed.weights) or listed.weights
        return catalog.TargetSize(weights, self.target.target_shape() or listed.shape)

    @property
    def draft_size(self) -> catalog.DraftSize:
        """By the files, else by the catalog."""
        unknown = catalog.DraftSize(None, DraftShape())
        listed = catalog.DRAFTS.get(self.known.draft, unknown)
        if self.draft is None or not is_here(self.draft):
            return listed
        weights = self.draft.weights(None) or listed.weights
        return catalog.DraftSize(weights, self.draft.draft_shape() or listed.shape)

    def disk(self, bits: int | None) -> int:
        """Bytes of the target's files at `bits`; files that are here count as they are."""
        here = self.target if is_here(self.target) else None
        if here is not None and here.bits == bits:
            return here.size
        return self.published.on_disk(bits)

    @property
    def draft_disk(self) -> int | None:
        """Bytes of the draft's files."""
        if self.draft is not None and is_here(self.draft):
            return self.draft.size
        weights = self.draft_size.weights
        return weights.on_disk(None) if weights else None

    def kv(self, wanted: Wanted) -> Kept | None:
        """How keys and values are kept, as wanted where the family allows it."""
        return None if self.known.family in UNQUANTISED else wanted.kv

    def memory(self, wanted: Wanted, machine: Machine) -> Estimate:
        """Bytes in memory on a machine."""
        target, draft = self.target_size, self.draft_size
        itemsize, block = machine.itemsize, draft.shape.block or WIDEST
        return Estimate(
            target.weights.loaded(wanted.bits, itemsize),
            draft.weights.loaded(wanted.draft_bits, itemsize) if draft.weights else None,
            target.shape.cache(wanted.context, block, itemsize, self.kv(wanted)),
            draft.shape.context(wanted.context, itemsize),
        )

    def fits(self, wanted: Wanted, machine: Machine) -> bool | None:
        """Whether a machine has the memory; None where the sum is not known but may fit."""
        estimate = self.memory(wanted, machine)
        if estimate.total > machine.usable:
            return False
        return True if estimate.complete else None

    def command(self, wanted: Wanted) -> str:
        """The command that talks to this pair."""
        words = ["dflash-mlx", "chat", "-m", self.model]
        short = self.model.lower() == self.known.name.lower()
        if not short and pairs.find(self.model) is not self.known:
            words += ["-d", self.known.draft]
        if wanted.bits and not self.target_size.weights.bits:
            words += ["--bits", str(wanted.bits)]
        if wanted.draft_bits and not (self.draft and self.draft.bits):
            words += ["--draft-bits", str(wanted.draft_bits)]
        kept = self.kv(wanted)
        if kept:
            words += ["--kv-bits", str(kept.bits)]
        return shlex.join(words)


def every(cache: Path | None = None) -> list[Pick]:
    """All pairs, with what of them is in a hub cache (by default the client's own)."""
    found = list(in_cache(cache or hub_cache()))
    return [_pick(known, found) for known in pairs.PAIRS]


def one(name: str, cache: Path | None = None) -> Pick:
    """The pair that a short name, a hub id or a folder belongs to.

    Raises:
        ModelNotFoundError: no pair goes by that name.
    """
    known = pairs.find(name)
    if known is None:
        raise ModelNotFoundError(
            f"no pair is known for {name!r}: give one of the names that `dflash-mlx models` "
            "lists, the hub id of a target or of a quantised copy, or a folder named like one"
        )
    pick = _pick(known, list(in_cache(cache or hub_cache())))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return replace(pick, model=name, target=read(folder, name) or pick.target)
    if "/" in name:
        return replace(pick, model=name, target=_named(name, pick.copies))
    return pick


def precision(bits: int | None) -> str:
    """How a precision is called."""
    return f"{bits}-bit" if bits else "bf16"


def _pick(known: Known, found: Sequence[Download]) -> Pick:
    if known.name == pairs.EMBEDDED:
        target = read(cache_root() / SMOLLM2.folder, known.target)
        draft = read(embedded_draft(), f"{pairs.EMBEDDED}-dflash")
        return Pick(known, known.name, target, draft, (target,) if target else ())
    copies = tuple(d for d in found if _belongs(d, known))
    target, draft = _named(known.target, copies), _named(known.draft, found)
    return Pick(known, known.name, target, draft, copies)


def _belongs(download: Download, known: Known) -> bool:
    pair = pairs.find(download.name)
    return pair is not None and pair.target == known.target


def _named(name: str, downloads: Iterable[Download]) -> Download | None:
    return next((d for d in downloads if d.name.lower() == name.lower()), None)


def is_here(download: Download | None) -> bool:
    """Whether a model is on this disk in full."""
    return download is not None and download.complete
