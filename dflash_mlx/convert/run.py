"""A conversion from names to a folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

from .. import pairfile
from ..checkpoint import read_config
from ..config import DraftConfig
from ..errors import CheckpointError, DFlashError, UsageError
from ..finding import check_fit, find_draft, find_target
from ..gguf import convert_gguf, is_draft
from ..hub import fetch, is_repo_id
from ..shards import SHARD_BYTES, write
from .card import model_card
from .draft import plan_draft
from .plan import Plan, Source
from .recipe import DraftRecipe, TargetRecipe
from .target import plan_target
from .work import Work, check_free, check_space, open_work

Parts = Literal["both", "target", "draft"]
# Told of every step: what is done, bytes so far, bytes in all.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What is to be converted.

    Attributes:
        model: the target: a short name, a hub id, a folder or a GGUF. For the draft alone it may
            be the draft itself.
        out: the folder to be made.
        draft: a hub id, a folder or a GGUF; by default the one that is known for the target.
        parts: both makes a pair's folder, with a pair.json.
        force: replace `out`.
        limit: most bytes of a file with weights.
    """

    model: str
    out: Path
    draft: str | None = None
    parts: Parts = "both"
    target: TargetRecipe = field(default_factory=TargetRecipe)
    drafter: DraftRecipe = field(default_factory=DraftRecipe)
    revision: str | None = None
    draft_revision: str | None = None
    force: bool = False
    limit: int = SHARD_BYTES


@dataclass
class Job:
    """A conversion that is found to be possible. `write` can be called once."""

    request: Request
    plans: list[Plan]

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return sum(plan.size for plan in self.plans)

    def write(self, report: Report) -> None:
        """Make the folder, or finish what an earlier run began.

        Raises:
            UsageError: the output is in the way, or the disk is full.
            CheckpointError: the files turned out to be damaged.
        """
        request = self.request
        key = {plan.part: plan.key() for plan in self.plans}
        with open_work(request.out, key, self.size, force=request.force) as work:
            try:
                self._write_all(work, _Progress(report, self.size))
            except RuntimeError as error:  # MLX's, as a file was changed behind our back
                raise CheckpointError(f"the source could not be read: {error}") from error
            work.finish()
        shutil.rmtree(_staging(request.out), ignore_errors=True)

    def _write_all(self, work: Work, progress: _Progress) -> None:
        pair = self.request.parts == "both"
        for plan in self.plans:
            _write_model(work, plan, f"{plan.part}/" if pair else "", progress)
        if pair:
            work.text("README.md", model_card(self.plans, self.request.out.name))
            stated = {plan.part: _record(work, plan) for plan in self.plans}
            content = {"format": pairfile.FORMAT, **stated}
            work.text(pairfile.PAIR, json.dumps(content, indent=1).encode())


def prepare(request: Request, *, quiet: bool = False) -> Job:
    """Find the files, fetch what is not there, and plan; nothing is written beside GGUFs' copies.

    Raises:
        DFlashError: one line that says what was given, what was expected and what to do.
    """
    check_free(request.out, request.force)
    if request.parts == "draft":
        source, raw = _draft_alone(request, quiet)
        return Job(request, [plan_draft(source, request.drafter, raw, request.limit)])
    target = _target(request, quiet)
    plans = [plan_target(target, request.target, request.limit)]
    if request.parts == "both":
        raw = read_config(target.path)
        source = _draft(request, raw, quiet)
        plans.append(plan_draft(source, request.drafter, raw, request.limit))
        config = DraftConfig.from_dict(plans[1].config, f"{source.name}/config.json")
        check_fit(config, raw, target.name, source.name)
    return Job(request, plans)


def sources(request: Request, *, quiet: bool = False) -> tuple[Source, Source]:
    """The files of a target and its draft; raises as `prepare`."""
    check_free(request.out, request.force)
    target = _target(request, quiet)
    raw = read_config(target.path)
    draft = _draft(request, raw, quiet)
    return target, draft


def _write_model(work: Work, plan: Plan, prefix: str, progress: _Progress) -> None:
    for file in list(plan.shards):
        shard = plan.shards.pop(file)
        if work.done(prefix + file):
            progress(f"{plan.part}: done before", plan.sizes[file])
            continue
        wrote = partial(progress, plan.part)
        work.put(prefix + file, partial(write, tensors=shard, wrote=wrote))
        mx.clear_cache()
    for name, content in plan.files.items():
        work.text(prefix + name, content)
    work.text(f"{prefix}README.md", model_card([plan], work.final.name))
    if plan.index is not None:
        work.text(f"{prefix}model.safetensors.index.json", plan.index)
    work.text(f"{prefix}config.json", json.dumps(plan.config, indent=4).encode())


def _record(work: Work, plan: Plan) -> dict[str, Any]:
    files = {n: work.written[f"{plan.part}/{n}"]._asdict() for n in sorted(plan.sizes)}
    return {
        "source": plan.source.name,
        "revision": plan.source.revision,
        "recipe": plan.recipe,
        **pairfile.fingerprint(work.out / plan.part, plan.part),
        "files": files,
    }


class _Progress:
    """Adds up what is written."""

    def __init__(self, report: Report, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def __call__(self, what: str, size: int) -> None:
        self._done = min(self._done + size, self._total)  # headers are not counted
        self._report(what, self._done, self._total)


def _target(request: Request, quiet: bool) -> Source:
    path = Path(request.model).expanduser()
    if path.suffix == ".gguf":
        if is_draft(path):
            raise UsageError(f"{path} holds a draft; add --draft-only, or name its target")
        return Source(request.model, _from_gguf(path, request.out, None))
    return _source(request.model, find_target(request.model, request.revision, quiet))


def _draft(request: Request, target: dict[str, Any] | None, quiet: bool) -> Source:
    path = Path(request.draft or "").expanduser()
    if request.draft and path.suffix == ".gguf":
        return Source(request.draft, _from_gguf(path, request.out, target))
    folder, name = find_draft(request.model, request.draft, request.draft_revision, quiet)
    return _source(name, folder)


def _draft_alone(request: Request, quiet: bool) -> tuple[Source, dict[str, Any] | None]:
    """The draft, and its target's config where that can be had."""
    path = Path(request.model).expanduser()
    if request.draft is None and path.suffix == ".gguf":
        return Source(request.model, _from_gguf(path, request.out, None)), None
    if request.draft is None and is_draft_folder(path):
        return Source(request.model, path), None
    raw = _target_config(request, quiet)
    return _draft(request, raw, quiet), raw


def is_draft_folder(path: Path) -> bool:
    """Whether a folder holds a draft, by its config."""
    if not (path / "config.json").is_file():
        return False
    raw = read_config(path)
    return any(name in raw for name in ("dflash_config", "speculators_model_type")) or str(
        raw.get("model_type")
    ).endswith("_assistant")


def _target_config(request: Request, quiet: bool) -> dict[str, Any]:
    """The target's config alone, of which a download is small."""
    if is_repo_id(request.model) and not Path(request.model).expanduser().is_dir():
        only = ("config.json",)
        folder = fetch(request.model, revision=request.revision, patterns=only, quiet=quiet)
        return read_config(folder)
    return read_config(find_target(request.model, request.revision, quiet))


def _source(name: str, folder: Path) -> Source:
    """A folder in the hub's cache is named by its commit."""
    return Source(name, folder, folder.name if folder.parent.name == "snapshots" else None)


def _from_gguf(path: Path, out: Path, target: dict[str, Any] | None) -> Path:
    """The folder that a GGUF becomes first, beside the output; kept until that is whole."""
    stamp = Source(str(path), path).stamp() if path.is_file() else ""
    text = json.dumps([stamp, target], sort_keys=True)
    folder = _staging(out) / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not folder.is_dir():
        check_space(out, 2 * path.stat().st_size if path.is_file() else 0)
        try:
            convert_gguf(path, folder, dtype=None, target=target)
        except DFlashError:
            shutil.rmtree(_staging(out), ignore_errors=True)
            raise
    return folder


def _staging(out: Path) -> Path:
    return out.parent / f".{out.name}.convert.gguf"
