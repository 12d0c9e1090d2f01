"""What a conversion will write, before anything is written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint import INDEX
from ..shards import SHARD_BYTES, Tensor, index, lazy, split

TOKENIZER = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "*.tiktoken")
# Written anew, or about other programs' weights.
_NOT_COPIED = ("config.json", INDEX, "quantize_config.json", "hf_quant_config.json")


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: as the user knows it.
        path: its folder, or a GGUF.
        revision: the commit on the hub, where that is known.
    """

    name: str
    path: Path
    revision: str | None = None

    def stamp(self) -> str:
        """Changes when the files do: their names, sizes and times, and the config itself."""
        whole = [self.path] if self.path.is_file() else sorted(self.path.iterdir())
        found = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in whole if p.is_file()]
        return hashlib.sha256(repr((self.revision, found)).encode()).hexdigest()


@dataclass
class Plan:
    """One model to write.

    Attributes:
        part: target or draft.
        config: config.json.
        shards: per file its tensors, not computed yet; writing takes them out.
        files: of the tokenizer and the like: content by name.
        recipe: what was asked for, for pair.json and the model card.
        facts: lines for the model card.
    """

    part: str
    source: Source
    config: dict[str, Any]
    shards: dict[str, dict[str, Tensor]]
    files: dict[str, bytes] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    facts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.sizes = {n: sum(t.nbytes for t in s.values()) for n, s in self.shards.items()}
        self.index = index(self.shards)
        tensors = ((n, t.shape, str(t.dtype)) for s in self.shards.values() for n, t in s.items())
        self.shapes = hashlib.sha256(repr(sorted(tensors)).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(self.sizes.values())

    def key(self) -> dict[str, Any]:
        """What a half-finished conversion must have in common with this one to be continued."""
        config = json.dumps(self.config, sort_keys=True, default=str)
        return {
            "source": self.source.stamp(),
            "config": hashlib.sha256(config.encode()).hexdigest(),
            "tensors": self.shapes,
            "recipe": self.recipe,
        }


def shard(arrays: dict[str, mx.array], limit: int = SHARD_BYTES) -> dict[str, dict[str, Tensor]]:
    """The files that hold `arrays`, which is emptied."""
    return split(lazy(arrays), limit)


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Everything beside config and weights that a tokenizer or a generation needs, as it is.

    Never code, and nothing behind a link that leads out of the folder, or of its repo in the
    hub's cache: a model from a stranger must not copy the user's files into what may be uploaded.
    """
    inside = folder.resolve()
    inside = inside.parents[1] if inside.parent.name == "snapshots" else inside
    found = sorted({path for pattern in TOKENIZER for path in folder.glob(pattern)})
    return {
        path.name: path.read_bytes()
        for path in found
        if path.is_file() and path.name not in _NOT_COPIED and path.resolve().is_relative_to(inside)
    }
