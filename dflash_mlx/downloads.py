"""Which of the models lie on this disk, and what their files say, without loading anything.

The layout is that of the hub client's cache: `models--OWNER--NAME/snapshots/COMMIT/` with a link
per file, and `refs/main` with the commit that `main` stood for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import DraftConfig
from .errors import DFlashError
from .footprint import DraftShape, TargetShape, Weights, heads, target_shape

INDEX = "model.safetensors.index.json"
PREFIX = "models--"


@dataclass(frozen=True)
class Download:
    """Model files on this disk.

    Attributes:
        name: the hub id, or the folder where it is not the hub's.
        config: the parsed config.json.
        size: bytes of the weights that are there.
        complete: whether all of them are.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    size: int
    complete: bool

    @property
    def bits(self) -> int | None:
        """Bits of the weights, where MLX has quantised them."""
        return self._quantised("bits")

    @property
    def group(self) -> int | None:
        """Weights that share a scale."""
        return self._quantised("group_size")

    def _quantised(self, field: str) -> int | None:
        stated = self.config.get("quantization")
        value = stated.get(field) if isinstance(stated, Mapping) else None
        return value if isinstance(value, int) else None

    def target_shape(self) -> TargetShape | None:
        """What the config says of a target; None where it does not say enough."""
        try:
            return target_shape(self.config)
        except (KeyError, TypeError, ValueError):
            return None

    def draft_shape(self) -> DraftShape | None:
        """What the config says of a draft; None where it is none."""
        try:
            config = DraftConfig.from_dict(self.config, self.name)
        except DFlashError:
            return None
        rows = tuple(heads(1, config.num_kv_heads, config.head_dim, w) for w in config.windows)
        return DraftShape(config.num_layers, config.block_size, len(config.taps), rows)

    def weights(self, known: Weights | None) -> Weights | None:
        """What the files hold.

        Args:
            known: the original's weights. Files in 16 bits may hold more (a vision tower), which
                is not loaded; files in another program's format are taken to hold the same.
        """
        if self.bits:
            group = self.group or 64
            count = round(8 * self.size / (self.bits + 32 / group))
            return Weights(count, bits=self.bits, group=group)
        if "quantization_config" in self.config:
            return known
        stated = str(self.config.get("dtype") or self.config.get("torch_dtype") or "")
        count = self.size // (4 if stated == "float32" else 2)
        return Weights(min(count, known.parameters) if known and not known.packed else count)


def hub_cache() -> Path:
    """The hub client's cache folder; its variables HF_HUB_CACHE and HF_HOME apply."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def in_cache(cache: Path) -> Iterator[Download]:
    """Every model in a hub cache that has a config."""
    for folder in sorted(cache.glob(f"{PREFIX}*")):
        snapshot = _snapshot(folder)
        name = folder.name.removeprefix(PREFIX).replace("--", "/", 1)
        found = read(snapshot, name) if snapshot else None
        if found:
            yield found


def read(folder: Path, name: str | None = None) -> Download | None:
    """A folder with a model; None without a readable config.json."""
    config = _object(folder / "config.json")
    if config is None:
        return None
    wanted = _shards(folder)
    there = [path for path in wanted if path.is_file()]
    size = sum(path.stat().st_size for path in there)
    complete = bool(wanted) and len(there) == len(wanted)
    return Download(name or str(folder), folder, config, size, complete)


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder; a link counts as nothing, its file as itself."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
        except OSError:  # gone meanwhile
            continue
    return total


def _snapshot(repo: Path) -> Path | None:
    try:
        commit = (repo / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = ""
    if commit and (repo / "snapshots" / commit).is_dir():
        return repo / "snapshots" / commit
    others = [path for path in repo.glob("snapshots/*") if path.is_dir()]
    return max(others, key=lambda path: path.stat().st_mtime, default=None)


def _shards(folder: Path) -> list[Path]:
    index = _object(folder / INDEX)
    names = index.get("weight_map") if index else None
    if isinstance(names, Mapping):
        return [folder / str(name) for name in sorted(set(map(str, names.values())))]
    return [folder / "model.safetensors"]


def _object(path: Path) -> Mapping[str, Any] | None:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return parsed if isinstance(parsed, Mapping) else None
