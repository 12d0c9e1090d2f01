"""Anthropic's `/v1/messages`: answers, whole and as events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator

from .anthropic import ClaudeRequest
from .events import event
from .fields import Reply
from .openai_common import new_id, statistics
from .parts import Call, Gathered, Outcome, Part, Text, Thinking
from .refusal import Refused
from .served import Served
from .wanted import Wanted

REASONS = {"stop": "end_turn", "length": "max_tokens", "calls": "tool_use"}
ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def error_body(error: Refused) -> dict[str, object]:
    """Anthropic's error object."""
    kind = ERRORS.get(error.status, "api_error" if error.status >= 500 else None)
    return {
        "type": "error",
        "error": {"type": kind or "invalid_request_error", "message": str(error)},
    }


class ReplyText(Reply):
    """Text of the answer."""

    type: Literal["text"] = "text"
    text: str
    citations: None = None


class ReplyThinking(Reply):
    """What the model thought before it."""

    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str = ""


class ReplyUse(Reply):
    """A tool call."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


class ClaudeUsage(Reply):
    """Counts; `input_tokens` are those that were computed."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class ClaudeReply(Reply):
    """A reply of `/v1/messages`."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Annotated[ReplyText | ReplyThinking | ReplyUse, Discriminator("type")]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: ClaudeUsage
    x_dflash: dict[str, Any] | None = None


class Count(Reply):
    """A reply of `/v1/messages/count_tokens`."""

    input_tokens: int


class ClaudeEncoder:
    """Writes an answer as Anthropic's API does."""

    keep_alive = event({"type": "ping"}, "ping")

    def __init__(self, body: ClaudeRequest, wanted: Wanted, served: Served, prompt_tokens: int):
        self._wanted, self._served, self._prompt_tokens = wanted, served, prompt_tokens
        self._id = new_id("msg_")
        self._index = -1
        self._open: str | int | None = None  # the block that is being written

    def begin(self) -> Iterator[str]:
        """The empty message."""
        counts = ClaudeUsage(input_tokens=self._prompt_tokens, output_tokens=0)
        message = self._reply([], None, None, counts)
        yield _event("message_start", message=message)

    def part(self, part: Part) -> Iterator[str]:
        """A delta, in a block of its kind."""
        if isinstance(part, Text):
            yield from self._block("text", {"type": "text", "text": ""})
            yield self._delta(type="text_delta", text=part.text)
        elif isinstance(part, Thinking):
            start = {"type": "thinking", "thinking": "", "signature": ""}
            yield from self._block("thinking", start)
            yield self._delta(type="thinking_delta", thinking=part.text)
        elif isinstance(part, Call):
            use = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
            yield from self._block(part.index, use)
        else:
            yield self._delta(type="input_json_delta", partial_json=part.text)

    def end(self, outcome: Outcome) -> Iterator[str]:
        """Why it ended, and the counts."""
        yield from self._close()
        reason, stop = _reason(outcome)
        delta = {"stop_reason": reason, "stop_sequence": stop}
        more = self._statistics(outcome)
        yield _event("message_delta", delta=delta, usage=_usage(outcome).model_dump(), **more)
        yield _event("message_stop")

    def fail(self, error: Refused) -> Iterator[str]:
        """An error event."""
        yield event(error_body(error), "error")

    def whole(self, parts: Sequence[Part], outcome: Outcome) -> dict[str, object]:
        """A message."""
        gathered = Gathered.of(parts)
        content: list[Any] = []
        if gathered.thinking:
            content.append(ReplyThinking(thinking=gathered.thinking))
        if gathered.text:
            content.append(ReplyText(text=gathered.text))
        for call, arguments in zip(gathered.calls, gathered.arguments, strict=True):
            content.append(ReplyUse(id=call.id, name=call.name, input=_input(arguments)))
        reason, stop = _reason(outcome)
        reply = self._reply(content, reason, stop, _usage(outcome))
        return reply | self._statistics(outcome)

    def _reply(
        self, content: list[Any], reason: Any, stop: str | None, usage: ClaudeUsage
    ) -> dict[str, object]:
        reply = ClaudeReply(
            id=self._id,
            model=self._served.name,
            content=content,
            stop_reason=reason,
            stop_sequence=stop,
            usage=usage,
        )
        return reply.model_dump(exclude={"x_dflash"})

    def _statistics(self, outcome: Outcome) -> dict[str, Any]:
        if not self._wanted.statistics:
            return {}
        return {"x_dflash": statistics(self._served.pair, outcome)}

    def _block(self, key: str | int, start: Mapping[str, object]) -> Iterator[str]:
        if self._open == key:
            return
        yield from self._close()
        self._open = key
        self._index += 1
        yield _event("content_block_start", index=self._index, content_block=start)

    def _close(self) -> Iterator[str]:
        if self._open is None:
            return
        if self._open == "thinking":
            yield self._delta(type="signature_delta", signature="")
        self._open = None
        yield _event("content_block_stop", index=self._index)

    def _delta(self, **delta: object) -> str:
        return _event("content_block_delta", index=self._index, delta=delta)


def _event(kind: str, **fields: object) -> str:
    return event({"type": kind, **fields}, kind)


def _reason(outcome: Outcome) -> tuple[str, str | None]:
    if outcome.reason == "stop" and outcome.stop is not None:
        return "stop_sequence", outcome.stop
    return REASONS[outcome.reason], None


def _usage(outcome: Outcome) -> ClaudeUsage:
    stats = outcome.stats
    return ClaudeUsage(
        input_tokens=stats.prompt_tokens - stats.cached_tokens,
        output_tokens=stats.generated_tokens,
        cache_read_input_tokens=stats.cached_tokens,
    )


def _input(arguments: str) -> dict[str, Any]:
    """Arguments as an object; what the model cut short or wrote otherwise stays readable."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = arguments
    return value if isinstance(value, dict) else {"input": value}
