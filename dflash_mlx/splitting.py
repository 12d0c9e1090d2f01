"""Streamed text told apart by the model's own markers: answer, thinking and tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mlx_lm.generate import TextStateMachine

Kind = Literal["answer", "thinking", "tool"]


Edges = dict[str, list[tuple[str, str]]]

# How mlx-lm calls our kinds; what it calls otherwise is between two of them, and is no text.
KINDS: dict[str, Kind] = {"normal": "answer", "reasoning": "thinking", "tool": "tool"}
# gpt-oss writes in channels, of which mlx-lm knows nothing.
FINAL = "<|channel|>final<|message|>"
CHANNELS: Edges = {
    "normal": [
        ("<|channel|>analysis<|message|>", "reasoning"),
        ("<|channel|>commentary<|message|>", "normal"),
        (FINAL, "normal"),
        ("<|start|>assistant", "normal"),
        ("<|end|>", "normal"),
    ],
    "reasoning": [("<|end|>", "normal")],
}


class Splitter:
    """Tells the kinds of text apart and takes the markers out.

    Args:
        tokenizer: mlx-lm's wrapper, which knows the markers.
        thinking: whether the answer begins inside a think block.
        tools: whether tool calls are told apart; their markers are text otherwise.
    """

    def __init__(self, tokenizer: Any, *, thinking: bool, tools: bool = False) -> None:
        begin = "reasoning" if thinking else tokenizer.response_initial_state or "normal"
        machine = TextStateMachine(_edges(tokenizer, tools and tokenizer.has_tool_calling))
        self._state = machine.make_state(begin)
        self._trims = tokenizer.has_thinking  # templates put line breaks around the markers
        self._begun = False

    @property
    def kind(self) -> Kind:
        """Of the text that comes next."""
        return KINDS.get(self._state[0], "answer")

    def split(self, text: str, *, ended: bool) -> list[tuple[Kind, str]]:
        """The text of a round by kind, one entry for every change and at least one."""
        self._state, parts = TextStateMachine.split(self._state, text)
        if ended:
            self._state, rest, name = TextStateMachine.flush(self._state)
            parts[-1] = (name, parts[-1][1] + rest)
        return [
            (KINDS.get(name, "answer"), self._trimmed(text if name in KINDS else "", index > 0))
            for index, (name, text) in enumerate(parts)
        ]

    def _trimmed(self, text: str, changed: bool) -> str:
        if changed:
            self._begun = False
        if self._trims and not self._begun:
            text = text.lstrip("\n")
        self._begun = self._begun or bool(text)
        return text


def header_of(tokenizer: Any) -> list[int]:
    """What stands between a prompt and an answer without thinking, where the template has no way
    to say it: ids to put behind the prompt, none for most models."""
    if tokenizer.has_thinking or not _has_channels(tokenizer):
        return []
    return list(tokenizer.encode(FINAL, add_special_tokens=False))


def _has_channels(tokenizer: Any) -> bool:
    return "<|channel|>" in tokenizer.get_added_vocab()


def _edges(tokenizer: Any, tools: bool) -> Edges:
    """Which marker leads from which kind of text to which, by mlx-lm's names."""
    edges: Edges = {name: [] for name in KINDS}
    if tokenizer.has_thinking:
        edges["normal"].append((tokenizer.think_start, "reasoning"))
        edges["reasoning"].append((tokenizer.think_end, "normal"))
    elif _has_channels(tokenizer):
        edges = {name: [*CHANNELS.get(name, ())] for name in KINDS}
    told = tokenizer.response_transitions
    if tools:
        # A format that has calls says itself where they begin.
        if all(kind != "tool" for found in told.values() for _, kind in found):
            edges["normal"].append((tokenizer.tool_call_start, "tool"))
        if tokenizer.has_thinking:
            edges["reasoning"].append((tokenizer.tool_call_start, "tool"))
        # A format without an end marker has its calls at the end of the answer.
        edges["tool"] += [(end, "normal") for end in [tokenizer.tool_call_end] if end]
    for marker in tokenizer.structural_markers:
        edges["normal"].append((marker, "normal"))
    for name, found in told.items():
        wanted = [(marker, kind) for marker, kind in found if tools or kind != "tool"]
        edges.setdefault(name, []).extend(wanted)
    return edges


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
