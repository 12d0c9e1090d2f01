"""Streamed text told apart by the model's own markers: answer, thinking and tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mlx_lm.generate import TextStateMachine

Kind = Literal["answer", "thinking", "tool"]


class Splitter:
    """Tells the kinds of text apart and takes the markers out.

    Args:
        tokenizer: mlx-lm's wrapper, which knows the markers.
        thinking: whether the answer begins inside a think block.
        tools: whether tool calls are told apart; their markers are text otherwise.
    """

    def __init__(self, tokenizer: Any, *, thinking: bool, tools: bool = False) -> None:
        edges: dict[str, list[tuple[str, str]]] = {}
        if tokenizer.has_thinking:
            edges["answer"] = [(tokenizer.think_start, "thinking")]
            edges["thinking"] = [(tokenizer.think_end, "answer")]
        if tools and tokenizer.has_tool_calling:
            for kind in ("answer", *edges.keys() & {"thinking"}):
                edges.setdefault(kind, []).append((tokenizer.tool_call_start, "tool"))
            # A format without an end marker has its calls at the end of the answer.
            end = tokenizer.tool_call_end
            edges["tool"] = [(end, "answer")] if end else []
        self._state = TextStateMachine(edges).make_state("thinking" if thinking else "answer")
        self._trims = tokenizer.has_thinking  # templates put line breaks around the markers
        self._begun = False

    @property
    def kind(self) -> Kind:
        """Of the text that comes next."""
        kind: Kind = self._state[0]
        return kind

    def split(self, text: str, *, ended: bool) -> list[tuple[Kind, str]]:
        """The text of a round by kind, one entry for every change and at least one."""
        self._state, parts = TextStateMachine.split(self._state, text)
        if ended:
            self._state, rest, kind = TextStateMachine.flush(self._state)
            parts[-1] = (kind, parts[-1][1] + rest)
        return [
            (kind, self._trimmed(text, changed=index > 0))
            for index, (kind, text) in enumerate(parts)
        ]

    def _trimmed(self, text: str, *, changed: bool) -> str:
        if changed:
            self._begun = False
        if self._trims and not self._begun:
            text = text.lstrip("\n")
        self._begun = self._begun or bool(text)
        return text


def opens_thinking(tokenizer: Any, past: Sequence[int], prompt: Sequence[int]) -> bool:
    """Whether a template begins the answer inside a think block.

    Args:
        tokenizer: mlx-lm's wrapper, of a model that can think.
        past: the conversation rendered without what the template adds for the answer.
        prompt: the same with it.
    """
    # What the template adds for the answer: a question may hold markers of its own.
    start = next(
        (i for i, (a, b) in enumerate(zip(past, prompt, strict=False)) if a != b), len(past)
    )
    tail = tokenizer.decode(list(prompt[start:]))
    return bool(tail.rfind(tokenizer.think_start) > tail.rfind(tokenizer.think_end))
