"""Log-probabilities of an answer's tokens, in OpenAI's forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..logprobs import TokenLogprob
from ..splitting import Splitter


class OfAnswer:
    """Tells which tokens are the answer proper, not thinking, calls or marks."""

    def __init__(self, tokenizer: Any, splitter: Splitter | None, eos_ids: frozenset[int]) -> None:
        self._detokenizer = tokenizer.detokenizer
        self._splitter, self._eos_ids = splitter, eos_ids
        self._kind = splitter.kind if splitter else "answer"

    def among(self, tokens: Sequence[TokenLogprob]) -> Iterator[TokenLogprob]:
        """Those of a round."""
        for one in tokens:
            if one.token in self._eos_ids:
                continue
            self._detokenizer.add_token(one.token)
            before, text = self._kind, self._detokenizer.last_segment
            if self._splitter is not None:
                self._kind = self._splitter.split(text, ended=False)[-1][0]
            if before == self._kind == "answer":
                yield one


def detailed(tokenizer: Any, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """As in chat and responses: a token each, with the most probable ones at its place."""
    return [
        _named(tokenizer, one.token, one.logprob)
        | {"top_logprobs": [_named(tokenizer, *other) for other in one.top]}
        for one in tokens
    ]


def listed(tokenizer: Any, tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """As in completions: lists side by side.

    Args:
        offset: characters of the answer before these tokens.
    """
    texts = [str(tokenizer.decode([one.token])) for one in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [
            {str(tokenizer.decode([token])): value for token, value in one.top} for one in tokens
        ],
        "text_offset": [offset + sum(map(len, texts[:i])) for i in range(len(texts))],
    }


def _named(tokenizer: Any, token: int, logprob: float) -> dict[str, Any]:
    text = str(tokenizer.decode([token]))
    # A part of a character is no text; which bytes it has, tokenizers do not tell.
    whole = "�" not in text
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}
