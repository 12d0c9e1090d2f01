"""The parts of an answer, and how it ended: what encoders turn into an API's words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..logprobs import TokenLogprob
from ..stats import Stats


@dataclass(frozen=True)
class Text:
    """A piece of the answer proper, with what was asked of the tokens up to its end."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Thinking:
    """A piece of what the model thinks before it."""

    text: str


@dataclass(frozen=True)
class Call:
    """The beginning of a tool call; `index` counts the calls of an answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Arguments:
    """A piece of the arguments of call `index`, JSON if its tool takes JSON."""

    index: int
    text: str


Part = Text | Thinking | Call | Arguments


@dataclass(frozen=True)
class Outcome:
    """How an answer ended.

    Attributes:
        reason: "stop", "length", or "calls" if it ended with tool calls.
        stop: the stop text that ended it.
        stats: the engine's counts.
        thought: tokens between think markers, about.
    """

    reason: str
    stats: Stats
    stop: str | None = None
    thought: int = 0


@dataclass
class Gathered:
    """All parts of an answer, put together."""

    text: str = ""
    thinking: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, parts: Iterable[Part]) -> Gathered:
        """Put parts together."""
        whole = cls()
        texts: dict[type[Part], list[str]] = {Text: [], Thinking: []}
        for part in parts:
            if isinstance(part, Call):
                whole.calls.append(part)
                whole.arguments.append("")
            elif isinstance(part, Arguments):
                whole.arguments[part.index] += part.text
            else:
                texts[type(part)].append(part.text)
            if isinstance(part, Text):
                whole.logprobs += part.logprobs
        whole.text, whole.thinking = "".join(texts[Text]), "".join(texts[Thinking])
        return whole
