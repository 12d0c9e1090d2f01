"""A request in the one form that all APIs are read into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..options import Options

# A message as chat templates take it: role, content and what else the role has.
Message = dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: as the model sees it.
        function: OpenAI's description of it: name, description, parameters.
        kind: "function"; "custom" has one free text as its argument.
        alias: the name its client knows, where it is another.
        namespace: of the client's name.
    """

    name: str
    function: Mapping[str, Any]
    kind: str = "function"
    alias: str | None = None
    namespace: str | None = None

    def shown(self) -> dict[str, Any]:
        """As chat templates take it."""
        return {"type": "function", "function": dict(self.function)}


@dataclass(frozen=True)
class Wanted:
    """What is to be answered, and how.

    Attributes:
        options: for the engine.
        messages: of a chat; empty for a bare prompt.
        prompt: text or ids of a bare prompt.
        tools: what the model is offered.
        template: arguments of the chat template besides messages and tools.
        goes_on: whether the last message is the beginning of the answer.
        stream: answer as events.
        usage: whether streamed answers end with their counts, where that is a choice.
        statistics: whether the answer has an `x_dflash` block.
        forced: whether the answer has to be calls of the tools.
        one_call: whether the answer ends with its first tool call.
        left_out: tools of the request that no model here can be given.
    """

    options: Options
    messages: Sequence[Message] = ()
    prompt: str | Sequence[int] | None = None
    tools: tuple[Tool, ...] = ()
    template: Mapping[str, Any] = field(default_factory=dict)
    goes_on: bool = False
    stream: bool = False
    usage: bool = True
    statistics: bool = False
    forced: bool = False
    one_call: bool = False
    left_out: tuple[str, ...] = ()

    def tool(self, name: str) -> Tool | None:
        """The offered tool of this name."""
        return next((tool for tool in self.tools if tool.name == name), None)
