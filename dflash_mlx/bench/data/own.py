"""Prompts of one's own: a file of JSON lines.

A line is an object with one of `prompt` (a text), `turns` (several) or `messages` (those of a
user, as `{"role": "user", "content": "..."}`), and perhaps `id` and `answer`. What else it has is
the user's own business.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import UsageError
from .problems import Problem, Problems, chosen, problems

ASKING = ("prompt", "turns", "messages")


def read_problems(path: Path, *, limit: int | None = None, seed: int = 0) -> Problems:
    """Problems of a file, at most `limit`, in an order that `seed` decides.

    A line without an id gets the file's stem and the number of its line.

    Raises UsageError, with its number, for a line that is none; for a file that cannot be read or
    is empty; for a limit under 1.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{path} cannot be read: {reason}; expected JSON lines") from error
    items: dict[str, Problem] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = _problem(line, f"{path.stem}/{number}")
            if item.id in items:
                raise ValueError(f"the id {item.id!r} for a second time; give each its own")
        except ValueError as error:
            raise UsageError(f"{path}:{number}: {error}") from error
        items[item.id] = item
    if not items:
        raise UsageError(f"{path} is empty; expected one JSON object with a prompt on each line")
    return problems(path.stem, chosen(list(items.values()), limit, seed), str(path))


def _problem(line: str, name: str) -> Problem:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{_short(row)}; expected an object with one of {', '.join(ASKING)}")
    given = [key for key in ASKING if key in row]
    if len(given) != 1:
        raise ValueError(f"it has {' and '.join(given) or 'none'} of {', '.join(ASKING)}; give one")
    return Problem(
        _scalar(row, "id") or name, _turns(given[0], row[given[0]]), _scalar(row, "answer")
    )


def _turns(key: str, value: Any) -> tuple[str, ...]:
    turns = [value] if key == "prompt" else value
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{key} is {_short(value)}; expected a list that is not empty")
    if key == "messages":
        turns = [_content(message) for message in turns]
    for turn in turns:
        if not isinstance(turn, str) or not turn.strip():
            raise ValueError(f"{key} holds {_short(turn)}; expected text")
    return tuple(turns)


def _content(message: Any) -> Any:
    role = message.get("role") if isinstance(message, dict) else None
    if role != "user":
        raise ValueError(f"messages holds {_short(message)}; expected role 'user' and a content")
    return message.get("content")


def _scalar(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
        raise ValueError(f"{key} is {_short(value)}; expected a text or a number")
    return None if value is None else str(value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}..."
