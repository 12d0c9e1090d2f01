"""OpenAI's `/v1/chat/completions`: answers, whole and as events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from ..logprobs import TokenLogprob
from .events import event
from .fields import Reply
from .openai_chat import ChatRequest
from .openai_common import Usage, error_body, new_id, now, statistics, usage
from .parts import Call, Gathered, Outcome, Part, Text, Thinking
from .probabilities import detailed
from .refusal import Refused
from .served import Served
from .wanted import Wanted

REASONS = {"stop": "stop", "length": "length", "calls": "tool_calls"}


class ReplyFunction(Reply):
    """The function of a tool call."""

    name: str
    arguments: str


class ReplyCall(Reply):
    """A tool call."""

    id: str
    type: Literal["function"] = "function"
    function: ReplyFunction


class ReplyMessage(Reply):
    """The answer; `reasoning_content` is what the model thought before it."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ReplyCall] | None = None


class ChatLogprobs(Reply):
    """Log-probabilities of the tokens of the answer."""

    content: list[dict[str, Any]]
    refusal: None = None


class ChatChoice(Reply):
    """The one answer of a reply."""

    index: Literal[0] = 0
    message: ReplyMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Reply):
    """A reply of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    x_dflash: dict[str, Any] | None = None


class ChatEncoder:
    """Writes an answer as OpenAI's chat API does."""

    keep_alive = ": keep-alive\n\n"

    def __init__(self, body: ChatRequest, wanted: Wanted, served: Served, prompt_tokens: int):
        self._wanted, self._served = wanted, served
        self._id, self._created = new_id("chatcmpl-"), now()

    def begin(self) -> Iterator[str]:
        """Who speaks."""
        yield self._chunk({"role": "assistant", "content": ""})

    def part(self, part: Part) -> Iterator[str]:
        """A delta."""
        if isinstance(part, Text):
            yield self._chunk({"content": part.text}, logprobs=self._logprobs(part.logprobs))
        elif isinstance(part, Thinking):
            yield self._chunk({"reasoning_content": part.text})
        elif isinstance(part, Call):
            function = {"name": part.name, "arguments": ""}
            call = {"index": part.index, "id": part.id, "type": "function", "function": function}
            yield self._chunk({"tool_calls": [call]})
        else:
            call = {"index": part.index, "function": {"arguments": part.text}}
            yield self._chunk({"tool_calls": [call]})

    def end(self, outcome: Outcome) -> Iterator[str]:
        """Why it ended, the counts if they were asked for, and `[DONE]`."""
        more = self._statistics(outcome)
        last = {} if self._wanted.usage else more
        yield self._chunk({}, REASONS[outcome.reason], last)
        if self._wanted.usage:
            counts = {"usage": usage(outcome).model_dump()}
            yield event(self._frame() | {"choices": []} | counts | more)
        yield "data: [DONE]\n\n"

    def fail(self, error: Refused) -> Iterator[str]:
        """An error where a chunk would be; no `[DONE]` follows."""
        yield event(error_body(error))

    def whole(self, parts: Sequence[Part], outcome: Outcome) -> dict[str, object]:
        """A `chat.completion`."""
        gathered = Gathered.of(parts)
        calls = [
            ReplyCall(id=call.id, function=ReplyFunction(name=call.name, arguments=arguments))
            for call, arguments in zip(gathered.calls, gathered.arguments, strict=True)
        ]
        message = ReplyMessage(
            content=gathered.text if gathered.text or not calls else None,
            reasoning_content=gathered.thinking or None,
            tool_calls=calls or None,
        )
        reason: Any = REASONS[outcome.reason]
        reply = ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._served.name,
            choices=[
                ChatChoice(
                    message=message,
                    logprobs=self._logprobs(gathered.logprobs),
                    finish_reason=reason,
                )
            ],
            usage=usage(outcome),
            **self._statistics(outcome),
        )
        return _without(reply.model_dump(), self._wanted.statistics)

    def _statistics(self, outcome: Outcome) -> dict[str, Any]:
        if not self._wanted.statistics:
            return {}
        return {"x_dflash": statistics(self._served.pair, outcome)}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        if self._wanted.options.logprobs is None:
            return None
        return ChatLogprobs(content=detailed(self._served.pair.tokenizer, tokens))

    def _frame(self) -> dict[str, object]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._served.name,
        }

    def _chunk(
        self,
        delta: dict[str, object],
        reason: str | None = None,
        more: dict[str, object] | None = None,
        logprobs: ChatLogprobs | None = None,
    ) -> str:
        known = logprobs.model_dump() if logprobs else None
        choice = {"index": 0, "delta": delta, "logprobs": known, "finish_reason": reason}
        counts = {"usage": None} if self._wanted.usage else {}
        return event(self._frame() | {"choices": [choice]} | counts | (more or {}))


def _without(reply: dict[str, Any], statistics: bool) -> dict[str, object]:
    """A reply without the optional fields that are empty."""
    message = reply["choices"][0]["message"]
    for name in ("reasoning_content", "tool_calls"):
        if message[name] is None:
            del message[name]
    if not statistics:
        del reply["x_dflash"]
    return reply
