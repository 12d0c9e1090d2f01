"""OpenAI's `/v1/chat/completions`: requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from ..options import Options
from .fields import (
    Effort,
    Model,
    SamplingFields,
    TemplateArguments,
    Text,
    Texts,
    thinking_of,
)
from .guides import Format, guided
from .openai_common import (
    BY_FORM,
    Function,
    FunctionName,
    StreamOptions,
    Word,
    arguments_of,
    offered,
)
from .refusal import Refused
from .served import Served
from .wanted import Message, Tool, Wanted

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


Choice = Annotated[Annotated[Word, Tag("word")] | Annotated[NamedChoice, Tag("named")], BY_FORM]


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
