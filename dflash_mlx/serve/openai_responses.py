"""OpenAI's `/v1/responses`, without memory of earlier ones: requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema

from ..options import Options
from .fields import Effort, Model, SamplingFields, Text, Texts, thinking_of
from .guides import FlatFormat, guided
from .openai_chat import options_of
from .openai_common import BY_FORM, Word, arguments_of, offered
from .refusal import Refused
from .served import Served
from .wanted import Message, Tool, Wanted

LOGPROBS = "message.output_text.logprobs"
NO_MEMORY = "nothing is stored; send the whole conversation as input"
# Tools of OpenAI's servers, and descriptions that the model cannot be shown. Agents list them
# beside their own whether the server has them or not.
HOSTED = (
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
    "image_generation",
    "code_interpreter",
    "file_search",
    "tool_search",
)


class InputMessage(Model):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Text
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class InputReasoning(Model):
    """Earlier thinking; what was encrypted elsewhere cannot be read and is left out."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[dict[str, Any]] | None = None
    content: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None
    status: str | None = None

    @property
    def text(self) -> str:
        """What was thought."""
        texts = (part.get("text") for part in self.content or ())
        return "".join(text for text in texts if isinstance(text, str))


class InputCall(Model):
    """An earlier call of a function."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None
    id: str | None = None
    status: str | None = None


class InputCustomCall(Model):
    """An earlier call of a tool that takes free text."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str
    namespace: str | None = None
    id: str | None = None
    status: str | None = None


class InputOutput(Model):
    """What a tool answered."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Text
    name: str | None = None
    id: str | None = None
    status: str | None = None


def _kind(item: object) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    return kind if isinstance(kind, str) else None


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputReasoning, Tag("reasoning")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputCustomCall, Tag("custom_tool_call")]
    | Annotated[InputOutput, Tag("function_call_output")]
    | Annotated[InputOutput, Tag("custom_tool_call_output")],
    Discriminator(
        _kind,
        custom_error_type="item",
        custom_error_message=(
            "only message, reasoning, function_call, custom_tool_call and their outputs are "
            "supported as input"
        ),
    ),
]


def _items(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class FunctionTool(Model):
    """A function of the client."""

    type: Literal["function"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None
    defer_loading: Literal[False] | None = None
    output_schema: dict[str, Any] | None = None

    def tool(self, namespace: str | None = None) -> Tool:
        """As the model is offered it."""
        name = f"{namespace}__{self.name}" if namespace else self.name
        function = {
            "name": name,
            "description": self.description or "",
            "parameters": self.parameters or {"type": "object", "properties": {}},
        }
        return Tool(name, function, alias=self.name, namespace=namespace)


class CustomTool(Model):
    """A tool of the client that takes free text; a grammar is told to the model, not enforced."""

    type: Literal["custom"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")
    description: str | None = None
    format: dict[str, Any] | None = None
    defer_loading: Literal[False] | None = None

    def tool(self) -> Tool:
        """As the model is offered it: a function of one text."""
        grammar = (self.format or {}).get("definition")
        how = f"\n\nThe input follows this grammar:\n{grammar}" if grammar else ""
        text = {"type": "string", "description": "the whole input of the tool"}
        function = {
            "name": self.name,
            "description": f"{self.description or ''}{how}",
            "parameters": {"type": "object", "properties": {"input": text}, "required": ["input"]},
        }
        return Tool(self.name, function, kind="custom")


class NamespaceTool(Model):
    """Functions under a common name."""

    type: Literal["namespace"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")
    description: str | None = None
    tools: list[FunctionTool]


class HostedTool(Model):
    """A tool of OpenAI's servers: accepted, and never called."""

    model_config = ConfigDict(extra="allow")

    type: Literal[HOSTED]  # type: ignore[valid-type]


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(
        lambda tool: "hosted" if (kind := _kind(tool)) in HOSTED else kind,
        custom_error_type="tool",
        custom_error_message="only function, custom and namespace tools are supported",
    ),
]


class TextConfig(Model):
    """How the answer is written."""

    format: FlatFormat | None = None
    verbosity: Literal["medium"] | None = None


class NamedTool(Model):
    """The choice of one tool."""

    type: Literal["function", "custom"]
    name: str


Choice = Annotated[Annotated[Word, Tag("word")] | Annotated[NamedTool, Tag("named")], BY_FORM]


class Reasoning(Model):
    """How much to think; all of it is returned, so a summary is not made."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: str | None = None


Included = Literal["reasoning.encrypted_content", "message.output_text.logprobs"]


class ResponsesRequest(SamplingFields):
    """A request to `/v1/responses`."""

    input: Annotated[
        list[Item],
        BeforeValidator(_items),
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
        ),
    ]
    model: str | None = None
    instructions: str | None = None
    stream: bool | None = None
    stream_options: dict[Literal["include_obfuscation", "include_usage"], bool | None] | None = None
    max_output_tokens: int | None = Field(None, ge=0)
    stop: Texts | None = None
    tools: list[AnyTool] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    include: list[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]] | None = (
        Field(None, description="of what may be included, thinking is there without asking")
    )
    chat_template_kwargs: dict[Literal["enable_thinking"], bool] | None = None
    store: Literal[False] | None = Field(None, description=NO_MEMORY)
    previous_response_id: None = Field(None, description=NO_MEMORY)
    conversation: None = Field(None, description=NO_MEMORY)
    context_management: None = Field(None, description=NO_MEMORY)
    prompt: None = Field(None, description="there are no stored prompts")
    background: Literal[False] | None = Field(None, description=NO_MEMORY)
    truncation: Literal["disabled"] | None = Field(None, description="shorten the input yourself")
    max_tool_calls: None = Field(None, description="no tool runs here")
    top_logprobs: int | None = Field(None, ge=0, le=20)
    user: str | None = None
    metadata: dict[str, Any] | None = None
    client_metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    def wanted(self, served: Served) -> Wanted:
        """The request in its common form.

        Raises:
            UsageError: a value does not fit.
        """
        template = thinking_of(self.reasoning.effort if self.reasoning else None)
        messages = list(self._messages())
        if not messages:
            raise Refused("input is empty; give at least one message", param="input")
        named = self.tool_choice if isinstance(self.tool_choice, NamedTool) else None
        mode = "function" if named else str(self.tool_choice or "auto")
        tools, forced = offered(mode, named.name if named else None, tuple(self._tools()))
        wanted = Wanted(
            options=self._options(served),
            messages=messages,
            tools=tools,
            forced=forced,
            template=template | dict(self.chat_template_kwargs or {}),
            stream=bool(self.stream),
            statistics=bool(self.x_dflash),
            one_call=self.parallel_tool_calls is False,
            left_out=tuple(t.type for t in self.tools or () if isinstance(t, HostedTool)),
        )
        form = self.text.format if self.text else None
        return guided(wanted, form.guide("text.format") if form else None, "text.format")

    def _options(self, served: Served) -> Options:
        options = options_of(self, served, self.max_output_tokens, self.stop)
        asked = LOGPROBS in (self.include or ()) or bool(self.top_logprobs)
        return replace(options, logprobs=(self.top_logprobs or 0) if asked else None)

    def _tools(self) -> Iterator[Tool]:
        for tool in self.tools or ():
            if isinstance(tool, NamespaceTool):
                yield from (inner.tool(tool.name) for inner in tool.tools)
            elif not isinstance(tool, HostedTool):
                yield tool.tool()

    def _messages(self) -> Iterator[Message]:
        if self.instructions:
            yield {"role": "system", "content": self.instructions}
        yield from turns(self.input)


def turns(items: Sequence[Any]) -> Iterator[Message]:
    """Items as messages: what an assistant thinks, says and calls in a row is one of them."""
    turn: Message = {}
    for item in items:
        if isinstance(item, InputOutput) or (
            isinstance(item, InputMessage) and item.role != "assistant"
        ):
            yield from _ended(turn)
            turn = {}
            yield _other(item)
            continue
        if isinstance(item, InputMessage) and "content" in turn:
            yield from _ended(turn)
            turn = {}
        turn = turn | _said(turn, item)
    yield from _ended(turn)


def _other(item: Any) -> Message:
    if isinstance(item, InputOutput):
        return {"role": "tool", "tool_call_id": item.call_id, "content": item.output}
    role = "system" if item.role == "developer" else item.role
    return {"role": role, "content": item.content}


def _said(turn: Message, item: Any) -> Message:
    if isinstance(item, InputMessage):
        return {"content": item.content}
    if isinstance(item, InputReasoning):
        return {"reasoning_content": turn.get("reasoning_content", "") + item.text}
    name = f"{item.namespace}__{item.name}" if item.namespace else item.name
    custom = isinstance(item, InputCustomCall)
    arguments = {"input": item.input} if custom else arguments_of(item.arguments)
    call = {
        "id": item.call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    return {"tool_calls": [*turn.get("tool_calls", []), call]}


def _ended(turn: Message) -> Iterator[Message]:
    turn = {name: value for name, value in turn.items() if value or name == "content"}
    if turn:
        yield {"role": "assistant", "content": ""} | turn
