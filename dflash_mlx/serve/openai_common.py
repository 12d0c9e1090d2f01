"""What OpenAI's three APIs share: errors, tools, counts."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any, Literal

from pydantic import Discriminator, Field

from ..loading import Pair
from .fields import Model, Reply
from .parts import Outcome
from .refusal import Refused
from .wanted import Tool


def error_body(error: Refused) -> dict[str, object]:
    """OpenAI's error object."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "server_error" if error.status >= 500 else None)
    return {
        "error": {
            "message": str(error),
            "type": kind or "invalid_request_error",
            "param": error.param,
            "code": error.code,
        }
    }


class Function(Model):
    """A function as OpenAI's chat API describes it."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = Field(
        None, description="arguments are not forced into their schema; leave strict out"
    )

    def shown(self) -> dict[str, Any]:
        """As chat templates take it."""
        return {
            "name": self.name,
            "description": self.description or "",
            "parameters": self.parameters or {"type": "object", "properties": {}},
        }


# How a tool choice is said: one word, or an object that names a tool.
Word = Literal["none", "auto", "required"]
BY_FORM = Discriminator(lambda value: "word" if isinstance(value, str) else "named")


class FunctionName(Model):
    """The name of a function that must be called."""

    name: str


class StreamOptions(Model):
    """What a stream says besides the answer; padding against listeners is not added."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class PromptDetails(Reply):
    """Prompt tokens that were not computed again."""

    cached_tokens: int


class CompletionDetails(Reply):
    """Tokens of thinking, and what became of the draft's proposals."""

    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(Reply):
    """Counts of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def usage(outcome: Outcome) -> Usage:
    """The counts of an answer."""
    stats = outcome.stats
    return Usage(
        prompt_tokens=stats.prompt_tokens,
        completion_tokens=stats.generated_tokens,
        total_tokens=stats.prompt_tokens + stats.generated_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=stats.cached_tokens),
        completion_tokens_details=CompletionDetails(
            reasoning_tokens=outcome.thought,
            accepted_prediction_tokens=stats.accepted,
            rejected_prediction_tokens=stats.drafted - stats.accepted,
        ),
    )


def statistics(pair: Pair, outcome: Outcome) -> dict[str, object]:
    """The `x_dflash` block."""
    return {"draft": pair.draft_name, **outcome.stats.as_dict()}


def offered(mode: str, name: str | None, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], bool]:
    """The tools to offer, and whether one has to be called.

    Args:
        mode: "auto", "none", "required", or "function" for the one of this name.
        name: of the one that has to be called.
        tools: all of the request.

    Raises:
        Refused: there is none that could be called.
    """
    if mode == "none":
        return (), False
    if mode == "auto":
        return tools, False
    if mode == "function":
        tools = tuple(tool for tool in tools if name in (tool.name, tool.alias))
    if not tools:
        raise Refused("tool_choice forces a call, and tools has none for it", param="tool_choice")
    return tools, True


def arguments_of(text: str) -> object:
    """Arguments of an earlier call as chat templates want them: an object where they are one."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def new_id(prefix: str) -> str:
    """An id as OpenAI's look."""
    return f"{prefix}{secrets.token_hex(12)}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
