"""Repos as the hub client's cache lays them out, with weights that take no place on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import published

QWEN = published.TARGETS["Qwen/Qwen3-4B"] | {"torch_dtype": "bfloat16"}
DRAFT = published.DRAFTS["z-lab/Qwen3-4B-DFlash-b16"] | {"dtype": "bfloat16"}


def weigh(folder: Path, size: int, name: str = "model.safetensors") -> None:
    """A file of a size that takes no place on the disk."""
    with (folder / name).open("wb") as file:
        file.truncate(size)


def store(
    cache: Path, repo: str, config: dict[str, Any], size: int, commit: str = "c0ffee"
) -> Path:
    """A repo in a hub cache."""
    root = cache / f"models--{repo.replace('/', '--')}"
    folder = root / "snapshots" / commit
    folder.mkdir(parents=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    (folder / "config.json").write_text(json.dumps(config))
    weigh(folder, size)
    return folder
