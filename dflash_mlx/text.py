"""Tokens to text, a round at a time: detokenising, stop texts, end-of-text tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_lm.generate import TextStateMachine


class TextStream:
    """The text of one answer.

    Args:
        tokenizer: mlx-lm's wrapper.
        eos_ids: tokens that end the answer and are no text.
        stop: texts that end the answer and are not part of it; text that may turn out to begin
            one is held back.
    """

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int], stop: Sequence[str]) -> None:
        self._detokenizer = tokenizer.detokenizer
        self._eos_ids = eos_ids
        machine = TextStateMachine({"text": [(s, None) for s in stop]})
        self._machine = machine.make_state("text")
        self.stopped = False

    def add(self, tokens: Sequence[int]) -> tuple[tuple[int, ...], str, bool]:
        """Take the tokens of a round.

        Returns:
            the tokens up to the one that completed a stop text; text that is now certain;
            whether a stop text ended the answer.
        """
        text = ""
        for count, token in enumerate(tokens, 1):
            if token in self._eos_ids:
                continue
            self._detokenizer.add_token(token)
            text += self._pass(self._detokenizer.last_segment)
            if self.stopped:
                return tuple(tokens[:count]), text, True
        return tuple(tokens), text, False

    def finish(self) -> str:
        """The text held back, when no more tokens come."""
        if self.stopped:
            return ""
        self._detokenizer.finalize()
        text = self._pass(self._detokenizer.last_segment)
        if self.stopped:
            return text
        self._machine, rest, _ = TextStateMachine.flush(self._machine)
        return text + str(rest)

    def _pass(self, text: str) -> str:
        self._machine, certain, state = TextStateMachine.step(self._machine, text)
        self.stopped = state is None
        return str(certain)
