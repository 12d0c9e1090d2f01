"""Tool calls out of the model's text, their arguments as soon as they are certain.

mlx-lm's parsers read a whole call. Two formats are common enough to be followed while they are
written: JSON, whose text of the arguments is handed on as it comes, and XML with a tag for every
parameter, where each closed tag lets the parser read one argument more.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

from .parts import Arguments, Call, Part, Text
from .wanted import Wanted

_JSON = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')
_XML = re.compile(r"\s*<function=([^\s<>]+)>")
_CLOSED = "</parameter>"
Parsed = tuple[str, Any, str | None]  # name, arguments and id of a call


def dumps(value: object) -> str:
    """JSON as it is read best; what UTF-8 cannot hold stays escaped."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


class Calls:
    """The tool calls of one answer."""

    def __init__(self, tokenizer: Any, wanted: Wanted) -> None:
        self._tokenizer = tokenizer
        self._wanted = wanted
        self._tools = [tool.shown() for tool in wanted.tools]
        self.count = 0
        self._reset()

    def _reset(self) -> None:
        self._text = ""
        self._open = False  # the client knows of this call
        self._sent = ""  # of its arguments
        self._json: _Object | None = None
        self._xml = False

    def add(self, text: str) -> Iterator[Part]:
        """More text of a call."""
        self._text += text
        if not self._open:
            yield from self._begin()
        if self._json is not None:
            yield from self._more(self._sent + self._json.take(self._text))
        elif self._xml and _CLOSED in text + self._text[-len(text) - len(_CLOSED) :]:
            end = self._text.rindex(_CLOSED) + len(_CLOSED)
            for _, arguments, _ in self._parsed(self._text[:end] + "</function>")[:1]:
                yield from self._more(dumps(arguments)[:-1])

    def close(self) -> Iterator[Part]:
        """The end of a call; one that cannot be read is text again."""
        calls = self._parsed(self._text)
        if self._open:
            if self._json is None:
                whole = dumps(calls[0][1]) if calls else self._sent
                yield from self._more(whole)
            self.count += 1
        elif not calls:
            yield Text(self._raw())
        for name, arguments, id_ in self._rest(calls):
            yield self._call(name, id_)
            yield Arguments(self.count, self._argument(name, dumps(arguments)))
            self.count += 1
        self._reset()

    def _rest(self, calls: list[Parsed]) -> list[Parsed]:
        """Of several calls in one text those that are still to be told."""
        if self._wanted.one_call:
            calls = calls[:1]
        return calls[1:] if self._open else calls

    def _begin(self) -> Iterator[Part]:
        found = _JSON.match(self._text)
        if found:
            self._json = _Object(found.end())
        else:
            found = _XML.match(self._text)
            self._xml = found is not None
        if found and not self._is_custom(found[1]):
            self._open = True
            yield self._call(found[1], None)
        else:
            self._json, self._xml = None, False

    def _more(self, arguments: str) -> Iterator[Part]:
        if len(arguments) > len(self._sent) and arguments.startswith(self._sent):
            yield Arguments(self.count, arguments[len(self._sent) :])
            self._sent = arguments

    def _call(self, name: str, id_: str | None) -> Call:
        return Call(self.count, id_ or f"call_{secrets.token_hex(12)}", name)

    def _is_custom(self, name: str) -> bool:
        tool = self._wanted.tool(name)
        return tool is not None and tool.kind == "custom"

    def _argument(self, name: str, arguments: str) -> str:
        """The arguments, or the one free text of a custom tool."""
        if not self._is_custom(name):
            return arguments
        values = json.loads(arguments)
        text = values.get("input") if isinstance(values, dict) else None
        return text if isinstance(text, str) else arguments

    def _parsed(self, text: str) -> list[Parsed]:
        """The calls in a text; empty if it is none."""
        try:
            found = self._tokenizer.tool_parser(text, self._tools)
        except Exception:  # a parser may fail anyhow on what a model writes
            return []
        calls = found if isinstance(found, list) else [found]
        return [
            (call["name"], call.get("arguments", {}), _id(call))
            for call in calls
            if isinstance(call, dict) and isinstance(call.get("name"), str)
        ]

    def _raw(self) -> str:
        tokenizer = self._tokenizer
        return f"{tokenizer.tool_call_start}{self._text}{tokenizer.tool_call_end or ''}"


def _id(call: dict[str, Any]) -> str | None:
    id_ = call.get("id")
    return id_ if isinstance(id_, str) and id_ else None


class _Object:
    """Follows a JSON object in a growing text to its closing brace."""

    def __init__(self, start: int) -> None:
        self._next = start
        self._depth = 0
        self._quoted = self._escaped = self._done = False

    def take(self, text: str) -> str:
        """What came since the last time, up to the end of the object."""
        start = self._next
        while self._next < len(text) and not self._done:
            self._step(text[self._next])
            self._next += 1
        return text[start : self._next]

    def _step(self, char: str) -> None:
        if self._quoted:
            self._quoted = self._escaped or char != '"'
            self._escaped = char == "\\" and not self._escaped
        elif char == '"':
            self._quoted = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self._done = self._depth == 0
