"""OpenAI's `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ..logprobs import TokenLogprob
from ..options import Options
from .events import event
from .fields import (
    Effort,
    Model,
    Reply,
    SamplingFields,
    TemplateArguments,
    Text,
    Texts,
    thinking_of,
)
from .guides import Format, guided
from .openai_common import (
    Function,
    FunctionName,
    StreamOptions,
    Usage,
    arguments_of,
    error_body,
    new_id,
    now,
    offered,
    statistics,
    usage,
)
from .parts import Call, Gathered, Outcome, Part, Thinking
from .parts import Text as TextPart
from .probabilities import detailed
from .refusal import Refused
from .served import Served
from .wanted import Message, Tool, Wanted

REASONS = {"stop": "stop", "length": "length", "calls": "tool_calls"}
ONE = "one answer a request; send several requests"
TEXT_ALONE = "this server reads and writes text alone"


class CalledFunction(Model):
    """A function of an earlier tool call."""

    name: str
    arguments: str = ""


class ToolCall(Model):
    """An earlier tool call."""

    id: str | None = None
    index: int | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Model):
    """A message; of what assistants sent, thinking is given to the template."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    def message(self) -> Message:
        """As chat templates take it."""
        role = "system" if self.role == "developer" else self.role
        message: Message = {"role": role, "content": self.content or self.refusal or ""}
        more = {
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content or self.reasoning,
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": arguments_of(call.function.arguments),
                    },
                }
                for call in self.tool_calls or ()
            ],
        }
        return message | {name: value for name, value in more.items() if value}


class ChatTool(Model):
    """A tool; only functions are."""

    type: Literal["function"] = "function"
    function: Function


class NamedChoice(Model):
    """The choice of one function."""

    type: Literal["function"]
    function: FunctionName


Word = Literal["none", "auto", "required"]
Choice = Annotated[
    Annotated[Word, Tag("word")] | Annotated[NamedChoice, Tag("named")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "named"),
]


class ChatRequest(SamplingFields):
    """A request to `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = Field(None, ge=0)
    stop: Texts | None = None
    tools: list[ChatTool] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateArguments | None = None
    response_format: Format | None = None
    n: Literal[1] | None = Field(None, description=ONE)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    store: Literal[False] | None = Field(None, description="answers are not stored")
    modalities: list[Literal["text"]] | None = Field(None, description=TEXT_ALONE)
    audio: None = Field(None, description=TEXT_ALONE)
    prediction: None = Field(None, description="the draft makes the predictions")
    functions: None = Field(None, description="use tools")
    function_call: None = Field(None, description="use tool_choice")
    web_search_options: None = Field(None, description="this server searches nothing")
    verbosity: Literal["medium"] | None = Field(None, description="say in the prompt how long")
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    def wanted(self, served: Served) -> Wanted:
        """The request in its common form.

        Raises:
            UsageError: a value does not fit.
        """
        tools = tuple(Tool(t.function.name, t.function.shown()) for t in self.tools or ())
        template = thinking_of(self.reasoning_effort)
        if self.chat_template_kwargs is not None:
            template |= self.chat_template_kwargs.given()
        named = self.tool_choice if isinstance(self.tool_choice, NamedChoice) else None
        mode = "function" if named else str(self.tool_choice or "auto")
        tools, forced = offered(mode, named.function.name if named else None, tools)
        wanted = Wanted(
            options=self._options(served),
            messages=[message.message() for message in self.messages],
            tools=tools,
            forced=forced,
            template=template,
            stream=bool(self.stream),
            usage=bool(self.stream_options and self.stream_options.include_usage),
            statistics=bool(self.x_dflash),
            one_call=self.parallel_tool_calls is False,
        )
        guide = self.response_format.guide() if self.response_format else None
        return guided(wanted, guide, "response_format")

    def _options(self, served: Served) -> Options:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise Refused(
                f"max_tokens is {self.max_tokens} and max_completion_tokens "
                f"{self.max_completion_tokens}; give one of them",
                param="max_tokens",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise Refused("top_logprobs needs logprobs: true", param="top_logprobs")
        options = options_of(self, served, limits.pop() if limits else None, self.stop)
        return replace(options, logprobs=(self.top_logprobs or 0) if self.logprobs else None)


def options_of(
    body: SamplingFields, served: Served, max_tokens: int | None, stop: Sequence[str] | None
) -> Options:
    """The engine's options.

    Raises:
        UsageError: a value is out of range.
    """
    defaults = served.defaults
    return replace(
        defaults,
        sampling=body.sampling(defaults.sampling),
        max_tokens=defaults.max_tokens if max_tokens is None else max_tokens,
        stop=defaults.stop if stop is None else tuple(stop),
        seed=defaults.seed if body.seed is None else body.seed % 2**32,
    )


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
        if isinstance(part, TextPart):
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
