"""Conversations on ids, for the tests of the prefix cache."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from dflash_mlx.config import SLIDING
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.generation import rounds
from dflash_mlx.loading import Pair
from dflash_mlx.options import Options
from dflash_mlx.prefix.cache import PrefixCache
from dflash_mlx.prefix.tree import Entry
from dflash_mlx.stats import Stats

from .families import draft_config, make_pair, prompt_of, random_draft

# Plain, rotating, rotating with shared keys, hybrid, latent.
KINDS = ("qwen3", "gpt_oss", "gemma4-shared", "qwen3_5", "kimi_k25")


class Turn(NamedTuple):
    """What a request brought: its ids, and how many ids of its prompt were computed."""

    ids: list[int]
    computed: int


def pair_of(family: str, window: int | None = None, **more: Any) -> Pair:
    """A pair with a random draft, which slides if it has a window."""
    changes: dict[str, Any] = {}
    if window:
        changes = {"layer_types": (SLIDING,) * 2, "sliding_window": window}
    return make_pair(family, random_draft(draft_config(**changes)), **more)


def with_draft(family: str, draft: DFlashDraft) -> Pair:
    """A pair with this draft."""
    return make_pair(family, draft)


def options(count: int = 3, **more: Any) -> Options:
    """Short answers, long prompts in several passes."""
    return Options(max_tokens=count, prefill_chunk=24, **{"block": 4, **more})


def alone(pair: Pair, prompt: Sequence[int], choice: Options | None = None) -> list[int]:
    """The answer without a cache."""
    return [t for r in rounds(pair, prompt, choice or options()) for t in r.tokens]


def ask(
    cache: PrefixCache,
    prompt: Sequence[int],
    choice: Options | None = None,
    stable: int | None = None,
) -> Turn:
    """The answer by way of the cache, as a server asks for it."""
    session, stats = cache.take(prompt, () if stable is None else (stable,)), Stats()
    given = len(session.ids)
    ids = [
        token
        for r in rounds(
            cache.pair,
            prompt,
            choice or options(),
            session,
            stats,
            lambda *_: cache.checkpoint(session),
        )
        for token in r.tokens
    ]
    cache.put(session)
    assert stats.cached_tokens == given, "what was taken can be gone on from"
    return Turn(ids, len(prompt) - given)


def growing(count: int, first: int = 40) -> Iterator[list[int]]:
    """What a user says in each turn."""
    yield prompt_of(first, seed=1)
    for turn in range(1, count):
        yield prompt_of(5 + turn % 4, seed=turn + 1)


def bits(cache: PrefixCache) -> dict[Entry, list[bytes]]:
    """Everything that is kept in memory."""
    return {
        entry: [bytes(memoryview(a.reshape(-1).view(mx.uint8))) for a in entry.arrays.values()]
        for entry in cache._tree
        if entry.arrays is not None
    }
