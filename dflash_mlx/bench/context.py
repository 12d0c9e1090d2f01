"""Prompts of given lengths, made of a set's own: how speed changes as the context grows."""

from __future__ import annotations

import hashlib
from itertools import cycle, islice

from ..conversation import Conversation
from ..errors import UsageError
from ..loading import Pair
from .data.problems import Problem, Problems
from .talk import prompt_behind

SHORTEST = 1024
TOKENS = " tokens"
QUESTION = "\n\nAnswer the last complete question above."


def lengths(most: int) -> list[int]:
    """1024, 2048, ... up to `most`.

    Raises:
        UsageError: not even the shortest fits.
    """
    found = []
    length = SHORTEST
    while length <= most:
        found.append(length)
        length *= 2
    if not found:
        raise UsageError(
            f"{most} tokens are left for a prompt, the shortest of this benchmark has {SHORTEST}; "
            "raise --max-context or lower --max-tokens"
        )
    return found


def of_length(pair: Pair, source: Problems, size: int, texts: int, think: bool | None) -> Problems:
    """So many prompts of nearly `size` tokens, the chat template included.

    Args:
        source: whose prompts are strung together, for each text from another one on.
    """
    room = len(prompt_behind(Conversation(pair, think=think), QUESTION))
    items = tuple(
        Problem(id=str(text), turns=(_strung(pair, source, size - room, text) + QUESTION,))
        for text in range(texts)
    )
    mark = hashlib.sha256(repr(items).encode()).hexdigest()[:16]
    return Problems(f"{size}{TOKENS}", items, source.source, source.sample, mark)


def size_of(dataset: str) -> int:
    """The length that such a set stands for."""
    return int(dataset.removesuffix(TOKENS))


def _strung(pair: Pair, source: Problems, tokens: int, first: int) -> str:
    """The set's prompts one after the other, cut at so many tokens."""
    ids: list[int] = []
    parts = cycle(problem.turns[0] for problem in source.items)
    for part in islice(parts, first % len(source.items), None):
        ids += pair.tokenizer.encode(part + "\n\n", add_special_tokens=False)
        if len(ids) >= tokens:
            break
    return str(pair.tokenizer.decode(ids[:tokens]))
