"""What a conversion comes to, on disk and in memory, before anything is fetched or written.

Files that lie here are planned exactly; of others the catalog knows the size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import catalog, downloads, footprint, pairs
from ..checkpoint import read_config
from ..config import DraftConfig
from ..embedded import SMOLLM2, embedded_draft
from ..errors import UsageError
from ..machine import Machine
from ..paths import cache_root
from .draft import plan_draft
from .plan import Plan, Source
from .recipe import DraftRecipe, TargetRecipe
from .run import Request, is_draft_folder
from .target import plan_target

CONTEXT = 4096  # tokens that memory is counted for
_MIXED = {"mixed_2_6": 3, "mixed_3_4": 3, "mixed_3_6": 4, "mixed_4_6": 5}


@dataclass(frozen=True)
class Sizes:
    """Bytes by part, and in memory; `exact` where all of it was planned from files."""

    disk: Mapping[str, int]
    exact: bool
    memory: footprint.Estimate


def estimate(request: Request, machine: Machine) -> Sizes:
    """What `request` would make.

    Raises:
        UsageError: a model that is neither here nor in the catalog.
        DFlashError: a model that is here and cannot be converted.
    """
    known = pairs.find(request.model)
    plans: list[Plan] = []
    guessed: dict[str, int] = {}
    raw = None
    if request.parts != "draft":
        folder = _here(request.model, known.target if known else None)
        if folder is not None:
            plans.append(plan_target(Source(request.model, folder), request.target))
            raw = read_config(folder)
        else:
            guessed["target"] = _target_bytes(request, known)
    if request.parts != "target":
        itself = request.parts == "draft" and is_draft_folder(Path(request.model).expanduser())
        name = request.draft or (known.draft if known and not itself else request.model)
        folder = _draft_here(name, known)
        if folder is not None:
            plans.append(plan_draft(Source(name, folder), request.drafter, raw))
        else:
            guessed["draft"] = _draft_bytes(name, request.drafter)
    disk = {**{plan.part: plan.size for plan in plans}, **guessed}
    return Sizes(disk, not guessed, _memory(disk, plans, known, machine))


def of_plans(plans: list[Plan], machine: Machine) -> Sizes:
    """What is about to be made."""
    disk = {plan.part: plan.size for plan in plans}
    return Sizes(disk, True, _memory(disk, plans, None, machine))


def _memory(
    disk: Mapping[str, int], plans: list[Plan], known: pairs.Known | None, machine: Machine
) -> footprint.Estimate:
    """Weights as on disk, caches as the configs, or the catalog, say."""
    configs = {plan.part: plan.config for plan in plans}
    draft = _draft_shape(configs.get("draft"), known)
    target = _target_shape(configs.get("target"), known)
    block = draft.block or 16
    return footprint.Estimate(
        disk.get("target", 0),
        disk.get("draft", 0),
        target.cache(CONTEXT, block, machine.itemsize) if target else 0,
        draft.context(CONTEXT, machine.itemsize) if "draft" in disk else 0,
    )


def _target_shape(
    config: dict[str, Any] | None, known: pairs.Known | None
) -> footprint.TargetShape | None:
    if config is not None:
        try:
            return footprint.target_shape(config)
        except (KeyError, TypeError, ValueError):
            return None
    listed = catalog.TARGETS.get(known.target) if known else None
    return listed.shape if listed else None


def _draft_shape(config: dict[str, Any] | None, known: pairs.Known | None) -> footprint.DraftShape:
    if config is not None:
        read = DraftConfig.from_dict(config, "the draft's config.json")
        rows = tuple(footprint.heads(1, read.num_kv_heads, read.head_dim, w) for w in read.windows)
        return footprint.DraftShape(read.num_layers, read.block_size, len(read.taps), rows)
    listed = catalog.DRAFTS.get(known.draft) if known else None
    return listed.shape if listed else footprint.DraftShape()


def _here(model: str, repo: str | None) -> Path | None:
    """The folder of a model that needs no download."""
    if Path(model).suffix == ".gguf":
        raise UsageError(f"{model}: --dry-run does not unpack GGUFs; convert it")
    if model and Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    if model.lower() == pairs.EMBEDDED:
        folder = cache_root() / SMOLLM2.folder
        return folder if folder.is_dir() else None
    names = {model, repo} if repo and "/" not in model else {model}
    found = (d for d in downloads.in_cache(downloads.hub_cache()) if d.complete)
    return next((download.folder for download in found if download.name in names), None)


def _draft_here(name: str, known: pairs.Known | None) -> Path | None:
    if not name and known is not None:
        return embedded_draft()
    return _here(name, None)


def _target_bytes(request: Request, known: pairs.Known | None) -> int:
    listed = catalog.TARGETS.get(known.target) if known else None
    if listed is None:
        raise UsageError(f"{request.model} is not here, and its size is not known; fetch it first")
    return _with_group(listed.weights, request.target).on_disk(_bits(request.target))


def _draft_bytes(name: str, recipe: DraftRecipe) -> int:
    listed = catalog.DRAFTS.get(name)
    if listed is None or listed.weights is None:
        raise UsageError(f"the draft {name} is not here, and its size is not known; fetch it first")
    weights = replace(listed.weights, group=recipe.group_size)
    return weights.on_disk(max((b for b in (recipe.mlp, recipe.attention) if b), default=None))


def _with_group(weights: footprint.Weights, recipe: TargetRecipe) -> footprint.Weights:
    return replace(weights, group=recipe.group_size or footprint.GROUP)


def _bits(recipe: TargetRecipe) -> int | None:
    if recipe.recipe:
        return _MIXED[recipe.recipe]
    return recipe.bits or {"affine": None, "mxfp8": 8}.get(recipe.mode, 4)
