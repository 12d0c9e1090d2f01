"""pair.json: what lies in a pair's folder, so that nothing else is ever taken for it.

    NAME/
      target/  draft/     as any other target and draft
      pair.json           written last

A pair is checked by it whenever it is loaded: the small files by content, the large ones by size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import read_config, read_json
from .errors import CheckpointError, PairError

PAIR = "pair.json"
FORMAT = 1
TARGET, DRAFT = "target", "draft"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model")


@dataclass(frozen=True)
class PairFolder:
    """A folder with pair.json."""

    folder: Path

    @property
    def target(self) -> Path:
        """The target's folder."""
        return self.folder / TARGET

    @property
    def draft(self) -> Path:
        """The draft's folder."""
        return self.folder / DRAFT

    def check(self) -> None:
        """Hold the folder against its pair.json.

        Raises:
            CheckpointError: pair.json is malformed.
            PairError: names the field that differs.
        """
        path = self.folder / PAIR
        stated = read_json(path)
        if stated.get("format") != FORMAT:
            raise CheckpointError(f"{path}: format {stated.get('format')!r}, expected {FORMAT}")
        for part, folder in ((TARGET, self.target), (DRAFT, self.draft)):
            recorded = stated.get(part)
            if not isinstance(recorded, Mapping):
                raise CheckpointError(f"{path}: no {part}")
            for field, found in fingerprint(folder, part).items():
                _compare(f"{part}.{field}", recorded.get(field), found, self.folder)
            files = recorded.get("files")
            if not isinstance(files, Mapping):
                raise CheckpointError(f"{path}: no {part}.files")
            _compare_sizes(part, files, folder, self.folder)


def find(folder: Path) -> PairFolder | None:
    """The pair in a folder; None without a pair.json."""
    return PairFolder(folder) if (folder / PAIR).is_file() else None


def fingerprint(folder: Path, part: str) -> dict[str, Any]:
    """What the small files of a target or a draft come to."""
    found: dict[str, Any] = {"config": _sha256(folder / "config.json")}
    if part == DRAFT:
        inner = read_config(folder).get("dflash_config")
        return found | {"taps": inner.get("target_layer_ids") if isinstance(inner, dict) else None}
    found["tokenizer"] = next((s for n in _TOKENIZERS if (s := _sha256(folder / n))), None)
    return found | {"chat_template": _template(folder)}


def _template(folder: Path) -> str | None:
    """The hash of the chat template, wherever it stands."""
    if stated := _sha256(folder / "chat_template.jinja"):
        return stated
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.is_file() else None
    if template is None:
        return None
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _compare(field: str, stated: object, found: object, folder: Path) -> None:
    if stated != found:
        raise PairError(
            f"{folder}: {field} differs from pair.json: {_short(found)}, expected "
            f"{_short(stated)}; convert the pair again, or name target and draft by themselves"
        )


def _compare_sizes(part: str, files: Mapping[str, Any], folder: Path, whole: Path) -> None:
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    _compare(f"{part}.files", sorted(files), found, whole)
    for name, stated in files.items():
        path = folder / Path(name).name
        size = path.stat().st_size if path.is_file() else None
        wanted = stated.get("size") if isinstance(stated, Mapping) else None
        _compare(f"{part}.files.{name}.size", wanted, size, whole)


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
