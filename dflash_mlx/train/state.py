"""What a training writes down so that it can be killed: its state, and a line for every step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_unflatten

from ..drafts.dflash import DFlashDraft
from ..errors import UsageError
from ..paths import whole_folder
from .arrays import flat, read_arrays, write_arrays

LOG = "log.jsonl"
STATE = "state-{:08}"


@dataclass(frozen=True)
class Progress:
    """Where a training stands besides its weights.

    Attributes:
        step: steps done.
        best: held-out tokens per round of the best draft, 0 before the first evaluation.
        waited: evaluations since then.
    """

    step: int = 0
    best: float = 0.0
    waited: int = 0


def save(folder: Path, draft: DFlashDraft, optimiser: optim.Optimizer, progress: Progress) -> None:
    """Write a state in the place of the last one."""
    old = list(folder.glob("state-*"))
    with whole_folder(folder / STATE.format(progress.step)) as new:
        write_arrays(new / "draft.safetensors", flat(draft.trainable_parameters()))
        write_arrays(new / "optimiser.safetensors", flat(optimiser.state))
        (new / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    for state in old:
        shutil.rmtree(state)


def restore(folder: Path, draft: DFlashDraft, optimiser: optim.Optimizer) -> Progress:
    """Take over the newest state; nothing if there is none."""
    states = sorted(folder.glob("state-*"))
    progress = Progress()
    if states:
        draft.update(_tree(states[-1] / "draft.safetensors"))
        optimiser.state = _tree(states[-1] / "optimiser.safetensors")
        progress = Progress(**json.loads((states[-1] / "progress.json").read_text("utf-8")))
        mx.eval(draft.parameters(), optimiser.state)
    return progress


def forget_behind(folder: Path, step: int) -> None:
    """Forget the log's lines of later steps; one process of a group does it."""
    kept = [line for line in read_log(folder) if line["step"] <= step]
    temporary = folder / f".{LOG}"
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    temporary.replace(folder / LOG)


def keep_settings(folder: Path, settings: Any) -> None:
    """Write down what a fit began with, or refuse to go on with something else.

    Raises:
        UsageError: it began with other settings, so that its curve would mean nothing.
    """
    file, now = folder / "settings.json", json.dumps(settings)
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # Whole at once, as every process of a group writes and reads it.
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(now, encoding="utf-8")
        temporary.replace(file)
    elif file.read_text(encoding="utf-8") != now:
        raise UsageError(
            f"{folder} was begun with other settings of the draft or the fit; remove it to begin "
            "again, or put the old settings back"
        )


def append(folder: Path, line: dict[str, Any]) -> None:
    """Add a line to the log."""
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """The log's lines; one that was cut off in the middle is left out."""
    if not (folder / LOG).is_file():
        return
    for line in (folder / LOG).read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _tree(file: Path) -> Any:
    return tree_unflatten(list(read_arrays(file).items()))
