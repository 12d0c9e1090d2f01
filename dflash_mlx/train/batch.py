"""Many texts of one target at once, each as it would be alone.

All rows of a batch stand at the same position: the pass over the prompts ends where the shortest
one does, and from there on a row whose prompt goes on takes the prompt's next token in the place
of a new one. So nothing is padded and no mask is needed, and prompts of similar length lose little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from ..kv import KVCache
from ..sampling import Sampling
from ..step import choose
from ..targets.base import Target

CHUNK = 512  # prompt tokens of a pass
PERIOD = 64  # longest piece of text whose repetition is a loop
REPEATS = 4  # times it has to stand there
SHORTEST = 32  # tokens that a loop spans at least
LOOK_EVERY = 16  # tokens between two looks for a loop


@dataclass(frozen=True)
class Answer:
    """What the target wrote.

    Attributes:
        ids: its tokens, the end token included.
        reason: "stop", "length" or "loop", where the text is cut behind the first repetition.
    """

    ids: tuple[int, ...]
    reason: str


def answer(
    target: Target,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling: Sampling,
    eos_ids: frozenset[int],
    seed: int,
) -> list[Answer]:
    """Continue every prompt.

    Args:
        prompts: at least one id each.
        max_tokens: of an answer.
        sampling: without bias and penalties.
        seed: of what is sampled.

    Returns:
        an answer per prompt, in order.
    """
    assert sampling.untouched
    rows = [_Row(list(p), len(p), max_tokens, eos_ids) for p in prompts]
    alive = list(rows)
    start = min(len(p) for p in prompts)
    cache = target.new_cache()
    ids = mx.array([p[:start] for p in prompts], mx.int32)
    for first in range(0, start, CHUNK):
        hidden = _pass(target, cache, ids[:, first : first + CHUNK], first)
    while alive:
        key = mx.random.key((seed << 20) + start)
        tokens = choose(target.logits(hidden[:, -1:])[:, 0].astype(mx.float32), sampling, key)
        for row, token in zip(alive, cast(list[int], tokens.tolist()), strict=True):
            row.take(start, token)
        kept = [i for i, row in enumerate(alive) if not row.reason]
        # Copying the cache costs about a step, so a few finished rows run on beside the others.
        if len(kept) <= 0.75 * len(alive):
            alive = [alive[i] for i in kept]
            cache.select(mx.array(kept, mx.int32))
        if any(not row.reason for row in alive):
            hidden = _pass(target, cache, mx.array([[row.at(start)] for row in alive]), start)
        else:
            break
        start += 1
    return [row.answer() for row in rows]


def repeated(ids: Sequence[int]) -> int:
    """The length of a piece that the text ends in again and again; 0 if there is none."""
    for period in range(1, PERIOD + 1):
        span = max(SHORTEST, period * REPEATS)
        if len(ids) >= span and ids[-span + period :] == ids[-span:-period]:
            return period
    return 0


class _Row:
    """One text of a batch."""

    def __init__(
        self, ids: list[int], prompt: int, max_tokens: int, eos_ids: frozenset[int]
    ) -> None:
        self.ids, self.prompt = ids, prompt
        self.last = prompt + max_tokens
        self.eos_ids = eos_ids
        self.reason = ""

    def at(self, place: int) -> int:
        """The token at a place; anything once the text has ended."""
        return self.ids[place] if place < len(self.ids) else self.ids[-1]

    def take(self, place: int, token: int) -> None:
        """Put a token at a place, unless the prompt has one there or the text has ended."""
        if self.reason or place < self.prompt:
            return
        self.ids.append(token)
        if token in self.eos_ids:
            self.reason = "stop"
        elif len(self.ids) % LOOK_EVERY == 0 and repeated(self.ids[self.prompt :]):
            self.reason = "loop"
        elif len(self.ids) == self.last:
            self.reason = "length"

    def answer(self) -> Answer:
        ids = self.ids[self.prompt :]
        if self.reason == "loop":
            ids = _cut(ids, repeated(ids))
        return Answer(tuple(ids), self.reason)


def _cut(ids: list[int], period: int) -> list[int]:
    """The text up to where it has said the piece twice."""
    first = next(i for i in range(len(ids)) if ids[i + period :] == ids[i : len(ids) - period])
    return ids[: first + 2 * period]


def _pass(target: Target, cache: KVCache, ids: mx.array, start: int) -> mx.array:
    state = cache.begin(start, ids.shape[1], fixed=False)
    hidden, _, state = target.forward(ids, start, state)
    cache.update(state)
    cache.commit(ids.shape[1])
    mx.async_eval(hidden, cache.arrays())
    return hidden
