"""The file of a run: written whole after every prompt, so that nothing measured is lost.

Version 1 of the format is described in docs/benchmarks.md. What is not under `answers` says what
was run, or follows from the answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..paths import write_whole
from .data.problems import Problems
from .figures import Figures, all_figures
from .records import Answer, Key

FORMAT = "dflash-mlx bench"
VERSION = 1


@dataclass
class Recording:
    """A run as it is kept.

    Attributes:
        kind: `sets`, `context` or `endpoint`.
        settings: everything that was asked for and changes what is measured.
        sets: name, source, fingerprint, size and whether it is a sample, one entry a set.
        machine: where it ran, as `Setting` describes it, and its power state.
        pairs: what was loaded.
        splits: where the time of a round goes, one entry a pair, set and arm.
        whole: whether it came to its end.
    """

    kind: str
    settings: dict[str, Any]
    sets: list[dict[str, Any]]
    machine: dict[str, Any] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    splits: list[dict[str, Any]] = field(default_factory=list)
    throughput: list[dict[str, Any]] = field(default_factory=list)
    whole: bool = False
    begun: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def done(self) -> set[Key]:
        """What has been answered."""
        return {answer.key for answer in self.answers}

    @property
    def figures(self) -> list[Figures]:
        """What the answers come to so far."""
        return all_figures(self.answers)

    def as_dict(self, figures: bool = True) -> dict[str, Any]:
        """In the form of JSON; without figures, which take longer and longer, while it runs."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **{name: vars(self)[name] for name in _PLAIN},
            "figures": [each.as_dict() for each in self.figures] if figures else [],
            "answers": [answer.as_dict() for answer in self.answers],
        }

    def write(self, path: Path, figures: bool = True) -> None:
        """Write the file, whole or not at all.

        Raises:
            UsageError: it cannot be written.
        """
        write_whole(path, json.dumps(self.as_dict(figures), ensure_ascii=False, allow_nan=False))

    def check_resumes(self, other: Recording) -> None:
        """Refuse to go on with another run's answers.

        Args:
            other: what is about to be run.

        Raises:
            UsageError: the settings or the problems are not the same.
        """
        for name in ("kind", "settings", "sets"):
            old, new = (_flat(json.loads(json.dumps(vars(r)[name]))) for r in (self, other))
            for key in old.keys() | new.keys():
                if old.get(key) != new.get(key):
                    raise UsageError(
                        f"the run to resume has {name} {key or name} {old.get(key)!r}, this one "
                        f"{new.get(key)!r}; give the same command again, or begin a new file"
                    )


_PLAIN = (
    "kind",
    "begun",
    "whole",
    "machine",
    "settings",
    "sets",
    "pairs",
    "splits",
    "throughput",
)


def read_recording(path: Path) -> Recording:
    """Read the file of a run.

    Raises:
        UsageError: it is none, or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no benchmark's file: no valid JSON") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"{path} is no benchmark's file; `bench --json FILE` writes one")
    if content.get("version") != VERSION:
        raise UsageError(
            f"{path} has format version {content.get('version')!r}, this release reads {VERSION}"
        )
    try:
        answers = [Answer.from_dict(answer) for answer in content["answers"]]
        return Recording(answers=answers, **{name: content[name] for name in _PLAIN})
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is a damaged benchmark's file: {error!r}") from error


def check_machine(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to go on with a run on another machine, or with other software.

    Raises:
        UsageError: they are not the same.
    """
    for name in ("device", "system", "versions"):
        if old[name] != new[name]:
            raise UsageError(
                f"the run to resume was measured with {name} {old[name]}, this is {new[name]}; "
                "begin a new file, and see `bench compare`"
            )


def set_entry(problems: Problems) -> dict[str, Any]:
    """How a set stands in the file."""
    return {
        "name": problems.dataset,
        "source": problems.source,
        "sample": problems.sample,
        "problems": len(problems.items),
        "fingerprint": problems.fingerprint,
    }


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every single value by its path."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        items = list(enumerate(value))
    else:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flat(item, f"{name}.{key}" if name else str(key))
    return flat
