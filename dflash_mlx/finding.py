"""From a name to the files of a target and of the draft that fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import pairs
from .config import DraftConfig
from .embedded import embedded_draft, embedded_target
from .errors import ModelNotFoundError, PairError
from .hub import fetch, is_repo_id
from .targets import family_of


def find_target(model: str, revision: str | None = None, quiet: bool = False) -> Path:
    """The folder of a target, fetched if it is not there.

    Raises ModelNotFoundError for a name that leads nowhere, UnsupportedError for a known family
    that cannot be run, DownloadError if it cannot be had.
    """
    known = pairs.find(model)
    if model and Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    if known is not None and model.lower() == known.name.lower():
        if known.name == pairs.EMBEDDED:
            return embedded_target(quiet=quiet)
        return _fetch(known.target, known, revision, quiet)
    if is_repo_id(model) and "/" in model:
        return _fetch(model, known, revision, quiet)
    raise ModelNotFoundError(
        f"no model {model!r}: not a folder, not a hub id (owner/name), and not one of "
        f"{pairs.names()}"
    )


def _fetch(repo: str, known: pairs.Known | None, revision: str | None, quiet: bool) -> Path:
    if known is not None:
        family_of(known.family, repo)
    return fetch(repo, revision=revision, quiet=quiet)


def find_draft(
    model: str, draft: str | None, revision: str | None = None, quiet: bool = False
) -> tuple[Path, str]:
    """Folder and name of a draft, fetched if it is not there: the one named, or the target's.

    Raises as `find_target`, and PairError if no draft is known for the target.
    """
    known = pairs.find(model)
    if draft is not None:
        if draft and Path(draft).expanduser().is_dir():
            return Path(draft).expanduser(), draft
        if not is_repo_id(draft) or "/" not in draft:
            raise ModelNotFoundError(f"no draft {draft!r}: not a folder, not a hub id (owner/name)")
        return fetch(draft, revision=revision, quiet=quiet), draft
    if known is None:
        raise PairError(
            f"no draft is known for {model!r}; name one with --draft, or decode plainly with "
            "--no-draft"
        )
    if known.name == pairs.EMBEDDED:
        return embedded_draft(), f"{pairs.EMBEDDED}-dflash"
    return fetch(known.draft, revision=revision, quiet=quiet), known.draft


def text_of(raw: dict[str, Any]) -> dict[str, Any]:
    """The part of a target's config that describes the language model."""
    nested = raw.get("text_config")
    return nested if isinstance(nested, dict) else raw


def check_fit(config: DraftConfig, raw: dict[str, Any], model: str, draft: str) -> None:
    """Refuse a draft that was made for another target, before anything is loaded."""
    text = text_of(raw)
    layers = text.get("num_hidden_layers", 0)
    vocabulary = text.get("vocab_size", raw.get("vocab_size"))
    wrong = None
    if config.hidden_size != text.get("hidden_size"):
        wrong = f"hidden size {config.hidden_size} against {text.get('hidden_size')}"
    elif abs((config.num_target_layers or layers) - layers) > 1:  # some configs count the embedding
        wrong = f"made for {config.num_target_layers} target layers, the target has {layers}"
    elif max(config.taps) >= layers:
        wrong = f"taps layer {max(config.taps)} of a target with {layers} layers"
    elif config.vocab_size != vocabulary:
        wrong = f"vocabulary {config.vocab_size} against {vocabulary}"
    elif not 0 <= config.mask_token_id < config.vocab_size:
        wrong = f"mask token {config.mask_token_id} outside {config.vocab_size} tokens"
    if wrong:
        raise PairError(f"the draft {draft} does not fit {model}: {wrong}")
