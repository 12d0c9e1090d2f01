"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`: requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from .fields import Effort, Model, Stop, Text, joined, thinking_of
from .guides import FlatFormat, guided
from .openai_common import offered
from .refusal import Refused
from .served import Served
from .wanted import Message, Tool, Wanted

CACHED = "prefixes are kept without marks"
TOOLS = "tools that run on Anthropic's servers are not there; only those with an input_schema are"


MODES = {"auto": "auto", "none": "none", "any": "required", "tool": "function"}
BILLING = "x-anthropic-billing-header:"


def _system(value: object) -> object:
    """The blocks of a system prompt as one text.

    Claude Code begins it with a line for Anthropic's accounts, another one in every request, which
    says nothing to a model and would leave no prefix in common.
    """
    if not isinstance(value, list):
        return value
    texts = [joined([part]) for part in value]
    return "\n\n".join(t for t in texts if isinstance(t, str) and not t.startswith(BILLING))


System = Annotated[
    str,
    BeforeValidator(_system),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}),
]


class TextBlock(Model):
    """A piece of text."""

    type: Literal["text"] = "text"
    text: str
    cache_control: dict[str, Any] | None = None
    citations: list[Any] | None = None


class ThinkingBlock(Model):
    """Earlier thinking, given back; a signature says nothing here."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None
    cache_control: dict[str, Any] | None = None


class HiddenBlock(Model):
    """Earlier thinking of another server, which nobody can read; left out."""

    type: Literal["redacted_thinking"]
    data: str


class UseBlock(Model):
    """An earlier tool call."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None


class ResultBlock(Model):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Text | None = None
    is_error: bool | None = None
    cache_control: dict[str, Any] | None = None


def _type(block: object) -> str | None:
    kind = block.get("type") if isinstance(block, dict) else None
    return kind if isinstance(kind, str) else None


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[HiddenBlock, Tag("redacted_thinking")]
    | Annotated[UseBlock, Tag("tool_use")]
    | Annotated[ResultBlock, Tag("tool_result")],
    Discriminator(
        _type,
        custom_error_type="block",
        custom_error_message="only text, thinking, tool_use and tool_result blocks are supported",
    ),
]


def _kind(content: object) -> str:
    return "text" if isinstance(content, str) else "blocks"


Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Block], Tag("blocks")], Discriminator(_kind)
]


class ClaudeMessage(Model):
    """A message; `system` is what some clients send between turns."""

    role: Literal["user", "assistant", "system"]
    content: Content

    def messages(self) -> Iterator[Message]:
        """As chat templates take it: results of tools are messages of their own."""
        if isinstance(self.content, str):
            yield {"role": self.role, "content": self.content}
        elif self.role == "assistant":
            yield _assistant(self.content)
        else:
            yield from _results(self.content)
            texts = [block.text for block in self.content if isinstance(block, TextBlock)]
            if texts:
                yield {"role": self.role, "content": "\n\n".join(texts)}


def _assistant(blocks: list[Any]) -> Message:
    thoughts = [b.thinking for b in blocks if isinstance(b, ThinkingBlock)]
    calls = [
        {"id": b.id, "type": "function", "function": {"name": b.name, "arguments": b.input}}
        for b in blocks
        if isinstance(b, UseBlock)
    ]
    text = "".join(b.text for b in blocks if isinstance(b, TextBlock))
    message: Message = {"role": "assistant", "content": text}
    more = {"reasoning_content": "".join(thoughts), "tool_calls": calls}
    return message | {name: value for name, value in more.items() if value}


def _results(blocks: list[Any]) -> Iterator[Message]:
    for block in blocks:
        if isinstance(block, ResultBlock):
            text = block.content or ""
            yield {
                "role": "tool",
                "tool_call_id": block.tool_use_id,
                "content": f"Error: {text}" if block.is_error else text,
            }


class ClaudeTool(Model):
    """A tool of the client."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")
    type: Literal["custom"] | None = Field(None, description=TOOLS)
    description: str | None = None
    input_schema: dict[str, Any]
    strict: Literal[False] | None = None
    cache_control: dict[str, Any] | None = None
    eager_input_streaming: bool | None = None
    input_examples: list[Any] | None = None
    allowed_callers: list[str] | None = None
    defer_loading: Literal[False] | None = None

    def tool(self) -> Tool:
        """As the model is offered it."""
        function = {
            "name": self.name,
            "description": self.description or "",
            "parameters": self.input_schema,
        }
        return Tool(self.name, function)


class ClaudeChoice(Model):
    """Whether tools may or must be called."""

    type: Literal["auto", "none", "any", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ClaudeThinking(Model):
    """Whether to think; a budget is a wish that nothing here can hold a model to."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: str | None = None


class OutputConfig(Model):
    """How much to think, and how the answer is written."""

    effort: Effort | None = None
    format: FlatFormat | None = None


class Edit(Model):
    """An edit of the history; templates drop earlier thinking themselves."""

    type: Literal["clear_thinking_20251015"]
    keep: Any = None


class ContextManagement(Model):
    """Edits of the history."""

    edits: list[Edit] | None = None


class CountRequest(Model):
    """A request to `/v1/messages/count_tokens`."""

    messages: list[ClaudeMessage] = Field(min_length=1)
    model: str | None = None
    system: System | None = None
    tools: list[ClaudeTool] | None = None
    tool_choice: ClaudeChoice | None = None
    thinking: ClaudeThinking | None = None
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = None
    cache_control: dict[str, Any] | None = None
    mcp_servers: Annotated[list[Any], Field(max_length=0)] | None = Field(
        None, description="this server calls no others"
    )

    def wanted(self, served: Served) -> Wanted:
        """The request in its common form.

        Raises:
            UsageError: a value does not fit.
        """
        tools = tuple(tool.tool() for tool in self.tools or ())
        choice = self.tool_choice
        mode = MODES[choice.type] if choice else "auto"
        tools, forced = offered(mode, choice.name if choice else None, tools)
        messages = self._messages()
        wanted = Wanted(
            options=served.defaults,
            messages=messages,
            tools=tools,
            forced=forced,
            template=self._template(),
            goes_on=messages[-1]["role"] == "assistant",
            one_call=bool(choice and choice.disable_parallel_tool_use),
        )
        form = self.output_config.format if self.output_config else None
        param = "output_config.format"
        return guided(wanted, form.guide(param) if form else None, param)

    def _messages(self) -> list[Message]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        merged: list[Message] = head
        for message in (m for item in self.messages for m in item.messages()):
            last = merged[-1] if merged else None
            # The API puts turns of one side together.
            if last and last["role"] == message["role"] and message.keys() == {"role", "content"}:
                merged[-1] = last | {"content": f"{last['content']}\n\n{message['content']}"}
            else:
                merged.append(message)
        if not merged:
            raise Refused("messages have no content", param="messages")
        return merged

    def _template(self) -> dict[str, Any]:
        effort = self.output_config.effort if self.output_config else None
        template = thinking_of(effort)
        if self.thinking is not None and self.thinking.type != "adaptive":
            template["enable_thinking"] = self.thinking.type == "enabled"
        return template


class ClaudeRequest(CountRequest):
    """A request to `/v1/messages`."""

    max_tokens: int = Field(ge=0)
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[Stop] | None = Field(None, max_length=64)
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    container: None = Field(None, description="this server runs no code")
    inference_geo: str | None = None
    x_dflash: bool | None = None

    def wanted(self, served: Served) -> Wanted:
        """The request in its common form.

        Raises:
            UsageError: a value does not fit.
        """
        wanted, defaults = super().wanted(served), served.defaults
        given = self.model_dump(include={"temperature", "top_p", "top_k"}, exclude_none=True)
        options = replace(
            wanted.options,
            sampling=replace(defaults.sampling, **given),
            max_tokens=self.max_tokens,
            stop=defaults.stop if self.stop_sequences is None else tuple(self.stop_sequences),
        )
        return replace(
            wanted,
            options=options,
            stream=bool(self.stream),
            statistics=bool(self.x_dflash),
        )
