"""Guides that begin where a model has thought: what comes before is free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import UnsupportedError
from .guide import Guide, Matcher

if TYPE_CHECKING:
    from llguidance import LLTokenizer

Bits = NDArray[np.uint32]
BREAKS = ("\n", "\n\n")  # what models write between their thinking and the answer


@dataclass(frozen=True)
class Thinking:
    """How a model marks its thinking, in token ids.

    Attributes:
        begin, end: the markers.
        breaks: line breaks that may stand between the end marker and the answer.
        opened: whether the prompt ends inside the thinking; else the model may begin it.
    """

    begin: int
    end: int
    breaks: tuple[int, ...]
    opened: bool

    @classmethod
    def of(cls, tokenizer: Any, *, opened: bool) -> Thinking:
        """The markers of a model that can think.

        Args:
            tokenizer: mlx-lm's wrapper.
            opened: as above.

        Raises:
            UnsupportedError: a marker is more than a token.
        """
        markers = (tokenizer.think_start_tokens, tokenizer.think_end_tokens)
        if any(len(marker) != 1 for marker in markers):
            raise UnsupportedError(
                f"this model ends its thinking by {tokenizer.think_end!r}, which is several "
                "tokens: a guide cannot begin behind it; turn thinking off"
            )
        breaks = [tokenizer.encode(text, add_special_tokens=False) for text in BREAKS]
        known = tuple(ids[0] for ids in breaks if len(ids) == 1)
        return cls(markers[0][0], markers[1][0], known, opened)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Thinking:
        """What `dataclasses.asdict` made, also after it was JSON."""
        return cls(**{**fields, "breaks": tuple(fields["breaks"])})


class Stage(Enum):
    """What comes next."""

    START = "an answer, or the begin marker"
    THINKING = "thoughts, or the end marker"
    BEHIND = "an answer, or line breaks before it"
    ANSWER = "an answer"


class ThinkingMatcher(Matcher):
    """As `Matcher`, for a text that may think first. It cannot end in its thoughts.

    Args:
        ends: tokens that end a text.
    """

    def __init__(
        self, guide: Guide, words: LLTokenizer, thinking: Thinking, ends: frozenset[int]
    ) -> None:
        super().__init__(guide, words)
        self._thinking = thinking
        everything = np.full(self._size, 0xFFFFFFFF, np.uint32)
        self._thoughts = everything & ~_bits(ends, self._size)
        self._begin = _bits([thinking.begin], self._size)
        self._breaks = _bits(thinking.breaks, self._size)
        # Of the first token, and of the one behind each that was taken.
        self._stages = [Stage.THINKING if thinking.opened else Stage.START]

    def allowed(self) -> Bits:
        stage = self._stages[-1]
        if stage is Stage.THINKING:
            return self._thoughts
        more = {Stage.START: self._begin, Stage.BEHIND: self._breaks}.get(stage)
        bits = super().allowed()
        return bits if more is None else bits | more

    def forced(self) -> list[int]:
        return super().forced() if self._stages[-1] is Stage.ANSWER else []

    def take(self, token: int) -> None:
        stage = self._after(token)
        if stage is Stage.ANSWER:
            super().take(token)
        self._stages.append(stage)

    def back(self, count: int) -> None:
        kept = len(self._stages) - count
        super().back(self._stages[kept:].count(Stage.ANSWER))
        del self._stages[kept:]

    def _after(self, token: int) -> Stage:
        stage, thinking = self._stages[-1], self._thinking
        if stage is Stage.THINKING:
            return Stage.BEHIND if token == thinking.end else Stage.THINKING
        if stage is Stage.START and token == thinking.begin:
            return Stage.THINKING
        if stage is Stage.BEHIND and token in thinking.breaks:
            return Stage.BEHIND
        return Stage.ANSWER


def _bits(tokens: Iterable[int], size: int) -> Bits:
    bits = np.zeros(size, np.uint32)
    for token in tokens:
        bits[token // 32] |= np.uint32(1 << token % 32)
    return bits
