"""The cache behind an engine: requests that overlap share what they begin with."""

from pathlib import Path

import pytest

from dflash_mlx.engine import Engine, EngineOptions, Ticket
from dflash_mlx.prefix.cache import PrefixCache, PrefixOptions

from .families import prompt_of
from .prefixes import alone, options, pair_of
from .tiny import tokenizer


def ids_of(ticket: Ticket) -> list[int]:
    return [token for response in ticket for token in response.tokens]


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5"])
def test_requests_that_overlap(family: str, tmp_path: Path) -> None:
    pair = pair_of(family, tokenizer=tokenizer())
    cache = PrefixCache(pair, PrefixOptions(folder=tmp_path))
    shared = prompt_of(60)
    prompts = [shared + prompt_of(5 + 9 * i, seed=i + 1) for i in range(6)]
    with Engine(pair, EngineOptions(places=3), cache) as engine:
        ids_of(engine.submit(shared, options()))
        tickets = [engine.submit(prompt, options(4 + i)) for i, prompt in enumerate(prompts)]
        tickets[4].cancel()
        answers = [ids_of(ticket) for ticket in tickets]
        # Each computed no more than its own part, and what the first three could not share yet.
        own = sum(len(prompt) - len(shared) for prompt in prompts)
        assert engine.counters.prefilled <= len(shared) + own + 3 * 16
    cache.close()
    for i in (0, 1, 2, 3, 5):
        assert answers[i] == alone(pair, prompts[i], options(4 + i))
    assert cache.statistics().hits >= 5
