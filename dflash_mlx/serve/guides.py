"""What an answer has to be: JSON by a schema, or a call of one of the tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from ..errors import UnsupportedError, UsageError
from ..guide import Guide
from ..loading import Pair
from ..thinking import Thinking
from .fields import Model
from .prompt import Prompt
from .refusal import Refused, unsupported
from .wanted import Tool, Wanted

PROBE = {"name": "f", "arguments": {"x": 1}}


class Schema(Model):
    """A JSON schema with its name, as OpenAI's chat API has it."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = Field(None, description="the schema is always kept to")
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class Format(Model):
    """How an answer is written, as OpenAI's chat API says it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    def guide(self) -> Guide | None:
        """What it has to be.

        Raises:
            UsageError: the schema cannot be used.
        """
        schema = self.json_schema.schema_ if self.json_schema else None
        return guide_of(self.type, schema, "response_format")


class FlatFormat(Model):
    """The same as OpenAI's Responses API and Anthropic's say it."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    def guide(self, param: str) -> Guide | None:
        """What it has to be.

        Raises:
            UsageError: the schema cannot be used.
        """
        return guide_of(self.type, self.schema_, param)


def guide_of(kind: str, schema: Mapping[str, Any] | None, param: str) -> Guide | None:
    """The guide of a format.

    Raises:
        UsageError: the schema is missing or cannot be used.
    """
    if kind == "text":
        return None
    if kind == "json_object":
        return Guide.json_object()
    if schema is None:
        raise Refused(f"{param} has no schema; give one", param=param)
    try:
        return Guide.json_schema(schema)
    except UsageError as error:
        raise Refused(f"{param}: {error}", param=param, code="invalid_value") from error


def guided(wanted: Wanted, guide: Guide | None, param: str) -> Wanted:
    """A request whose answer is held to a guide.

    Raises:
        Refused: tools are on offer, too; a call would not be such an answer.
    """
    if guide is None:
        return wanted
    if wanted.tools:
        raise unsupported(
            param, "a schema beside tools", "send it without tools or with tool_choice none"
        )
    return _terse(replace(wanted, options=replace(wanted.options, guide=guide)))


def called(pair: Pair, wanted: Wanted) -> Wanted:
    """A request whose answer has to be calls of its tools.

    Raises:
        Refused: the model's calls are not JSON, or their schemas cannot be used.
    """
    tokenizer = pair.tokenizer
    if not tokenizer.has_tool_calling or not _takes_json(tokenizer):
        raise unsupported(
            "tool_choice",
            "a forced call",
            f"{pair.name} does not write its calls as JSON; use auto",
        )
    guide = Guide.lark(grammar_of(tokenizer, wanted.tools, several=not wanted.one_call))
    return _terse(replace(wanted, options=replace(wanted.options, guide=guide)))


def grammar_of(tokenizer: Any, tools: Sequence[Tool], *, several: bool) -> str:
    """The grammar, in Lark's syntax, of calls of these tools between the model's markers."""
    before, after = f"{tokenizer.tool_call_start}\n", f"\n{tokenizer.tool_call_end}"
    more = f" ({json.dumps(chr(10))} one)*" if several else ""
    return (
        f"start: one{more}\n"
        f"one: {json.dumps(before)} call {json.dumps(after)}\n"
        f"call: %json {json.dumps(schema_of(tools))}\n"
    )


def schema_of(tools: Sequence[Tool]) -> dict[str, Any]:
    """The schema of a call of one of these tools.

    Raises:
        Refused: two of them define different things under one name.
    """
    definitions: dict[str, Any] = {}
    calls = []
    for tool in tools:
        arguments = dict(tool.function["parameters"])
        for name, what in arguments.pop("$defs", {}).items():
            if definitions.setdefault(name, what) != what:
                raise Refused(f"tools define {name} in different ways", param="tools")
        properties = {"name": {"const": tool.name}, "arguments": arguments}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        )
    return {"anyOf": calls} | ({"$defs": definitions} if definitions else {})


def _terse(wanted: Wanted) -> Wanted:
    """A request with a guide, whose answer is for a program: without thinking unless it asks."""
    return replace(wanted, template={"enable_thinking": False, **wanted.template})


def behind_thinking(pair: Pair, wanted: Wanted, prompt: Prompt) -> Wanted:
    """A request whose guide begins behind what the model thinks, if it does.

    Raises:
        Refused: the end of its thinking is not one token.
    """
    options, asked = wanted.options, wanted.template.get("enable_thinking") is True
    if options.guide is None or not (prompt.thinking or (asked and pair.tokenizer.has_thinking)):
        return wanted
    try:
        thinking = Thinking.of(pair.tokenizer, opened=prompt.thinking)
    except UnsupportedError as error:
        raise Refused(str(error), code="unsupported_value") from error
    return replace(wanted, options=replace(options, thinking=thinking))


def _takes_json(tokenizer: Any) -> bool:
    """Whether calls are JSON with a name and arguments: mlx-lm's parsers do not say."""
    try:
        return bool(tokenizer.tool_parser(json.dumps(PROBE), None) == PROBE)
    except Exception:  # another format fails on it in its own way
        return False
