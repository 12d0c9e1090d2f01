"""Guides: what a text has to be, and which tokens may come next.

A grammar is followed by llguidance, which a user installs with the extra `guided`. Per place of
the text it tells the tokens that some text of the grammar goes on with; the end-of-text token is
one of them where the text may end.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

log = logging.getLogger(__name__)

# Between the parts of a JSON text: nothing, a space or an indented new line. Without a limit a
# model that does not know how to go on may write blanks for ever.
BLANK = r" |\n[ \t]{0,24}"
LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Guide:
    """What a text has to be, from its first token to its last. Made by one of the methods.

    Attributes:
        grammar: in llguidance's own form.

    Raises:
        UsageError: llguidance does not take the grammar, or is not installed.
    """

    grammar: str

    def __post_init__(self) -> None:
        _require()
        from llguidance import LLMatcher

        wrong, messages = LLMatcher.validate_grammar_with_warnings(self.grammar)
        if wrong:
            raise UsageError(f"the guide cannot be used: {_line(messages[0])}")
        for message in messages:
            log.warning("guide: %s", _line(message))

    @classmethod
    def json_schema(cls, schema: str | Mapping[str, Any], *, compact: bool = False) -> Self:
        """A JSON text that is valid by a schema; what llguidance cannot hold it to is refused.

        Args:
            schema: as text or parsed.
            compact: without blanks between the parts.
        """
        _require()
        from llguidance import LLMatcher

        blanks: Any = {"whitespace_flexible": False} if compact else {"whitespace_pattern": BLANK}
        text = schema if isinstance(schema, str) else json.dumps(schema)
        try:
            parsed = json.loads(text)
        except ValueError as error:
            raise UsageError(f"the schema is not valid JSON: {error}") from None
        if not isinstance(parsed, dict):
            raise UsageError('the schema is not a JSON object, as in \'{"type": "object"}\'')
        return cls(LLMatcher.grammar_from_json_schema(text, defaults=blanks))

    @classmethod
    def json_object(cls, *, compact: bool = False) -> Self:
        """Any JSON object."""
        return cls.json_schema({"type": "object"}, compact=compact)

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """What a regular expression (Rust's syntax) matches as a whole."""
        _require()
        from llguidance import LLMatcher

        return cls(LLMatcher.grammar_from_regex(pattern))

    @classmethod
    def lark(cls, grammar: str) -> Self:
        """What a context-free grammar in Lark's syntax derives from `start`."""
        _require()
        from llguidance import LLMatcher

        return cls(LLMatcher.grammar_from_lark(grammar))

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Self:
        """One of some texts."""
        if isinstance(texts, str) or not texts:
            raise UsageError("the guide has no texts to choose from; give at least one")
        return cls.lark("start: " + " | ".join(json.dumps(text) for text in texts))


class Matcher:
    """Where a text stands in its grammar.

    Args:
        guide: what the text has to be.
        words: the vocabulary.
    """

    def __init__(self, guide: Guide, words: LLTokenizer) -> None:
        from llguidance import LLMatcher

        self._matcher = LLMatcher(words, guide.grammar, log_level=0)
        self._size = -(-words.vocab_size // 32)
        self._check()

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> np.ndarray:
        """Which tokens may come next: uint32 [words], bit i % 32 of word i // 32 for token i.

        Where nothing can follow, every token: what comes there does not count.
        """
        if self.ended:
            return np.full(self._size, 0xFFFFFFFF, np.uint32)
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        self._check()
        return mask[: self._size]  # it may have a word more

    def forced(self) -> list[int]:
        """The tokens that have to come next, as far as there is no choice; the usual ones among
        those that spell the same text."""
        return [] if self.ended else self._matcher.compute_ff_tokens()

    def take(self, token: int) -> None:
        """Go on behind a token that is allowed."""
        self._matcher.consume_token(token)
        self._check()

    def back(self, count: int) -> None:
        """Forget the last `count` tokens."""
        self._matcher.rollback(count)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"the guide cannot go on: {_line(self._matcher.get_error())}")


def words_of(tokenizer: Any, size: int, eos_ids: frozenset[int]) -> LLTokenizer:
    """The vocabulary of a pair as llguidance reads it; takes a second or so.

    Args:
        tokenizer: mlx-lm's wrapper.
        size: tokens that the target's logits stand for.
        eos_ids: tokens that end a text.

    Raises:
        UnsupportedError: the tokenizer is not one of the library `tokenizers`.
        UsageError: llguidance is not installed.
    """
    _require()
    from llguidance.hf import from_tokenizer

    if not tokenizer.is_fast:
        raise UnsupportedError(
            "guides need a tokenizer of the library `tokenizers` (tokenizer.json); this model's is "
            "written in Python"
        )
    return from_tokenizer(tokenizer._tokenizer, n_vocab=size, eos_token=sorted(eos_ids) or None)


def _require() -> None:
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise UsageError("guides need the package llguidance: pip install '.[guided]'") from None


def _line(message: str) -> str:
    """The gist of a message of llguidance, without the source lines it quotes."""
    lines = (line for line in message.splitlines() if not re.match(r"\s*(\^|\d+ \|)", line))
    text = " ".join(" ".join(lines).split())
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 3] + "..."
