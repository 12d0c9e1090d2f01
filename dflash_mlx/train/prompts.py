"""Prompts from a file, and which of them are kept from training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError

EXPECTED = 'expected a string, {"prompt": "..."} or {"messages": [...]}'
Message = tuple[str, str]  # role and content


@dataclass(frozen=True)
class Asked:
    """One prompt.

    Attributes:
        messages: roles and contents, the last one the user's.
        kind: what sort of prompt it is, for figures by kind; may be empty.
        split: "train", another name for what is held out, or empty to decide by the hash.
    """

    messages: tuple[Message, ...]
    kind: str = ""
    split: str = ""

    @property
    def key(self) -> str:
        """Its hash, which is its name everywhere."""
        text = json.dumps(self.messages, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def held_out(self, share: float) -> bool:
        """Whether it is kept from training: as its file says, else this share of all."""
        if self.split:
            return self.split != "train"
        return int(self.key, 16) < share * 16**16


def read_prompts(path: Path) -> list[Asked]:
    """The prompts of a file, each once: .json (a list), .jsonl or .txt (one a line).

    Raises:
        UsageError: the file cannot be read, or something in it is no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{path} cannot be read: {reason}") from error
    found = {asked.key: asked for asked in _parse(path, text)}
    if not found:
        raise UsageError(f"{path} holds no prompts; {EXPECTED}, one a line")
    return list(found.values())


def _parse(path: Path, text: str) -> Iterable[Asked]:
    if path.suffix == ".txt":
        return [Asked((("user", line.strip()),)) for line in text.splitlines() if line.strip()]
    if path.suffix == ".json":
        values = _load(text, str(path))
        if not isinstance(values, list):
            raise UsageError(f"{path} holds no list of prompts")
        return [_asked(value, f"{path}, entry {i}") for i, value in enumerate(values, 1)]
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [_asked(_load(line, f"{path}, line {i}"), f"{path}, line {i}") for i, line in lines]


def _load(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{where} is not valid JSON") from None


def _asked(value: Any, where: str) -> Asked:
    if isinstance(value, str):
        value = {"prompt": value}
    match value:
        case {"messages": [*messages]}:
            found = tuple(_message(m, where) for m in messages)
        case {"prompt": str(prompt)} if prompt.strip():
            found = (("user", prompt),)
        case _:
            raise UsageError(f"{where} holds no prompt; {EXPECTED}")
    while found and found[-1][0] == "assistant":
        found = found[:-1]  # the target answers for itself
    if not found or found[-1][0] != "user":
        raise UsageError(f"{where} has no message of the user at its end")
    return Asked(found, str(value.get("kind", "")), str(value.get("split", "")))


def _message(value: Any, where: str) -> Message:
    match value:
        case {"role": str(role), "content": str(content)}:
            return role, content
    raise UsageError(f'{where} has a message that is not {{"role": ..., "content": ...}}')
