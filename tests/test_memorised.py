"""A draft that has learnt four answers by heart: long acceptances of a real model, and no more.

`data/memorised/README.md` says how it was made. It shows that training, files and decoding agree;
it says nothing of drafts in general.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dflash_mlx.engine import Engine
from dflash_mlx.generation import rounds as decoded
from dflash_mlx.loading import Pair, load
from dflash_mlx.options import Options
from dflash_mlx.sampling import Sampling
from dflash_mlx.stats import Stats
from dflash_mlx.train.generate import encode
from dflash_mlx.train.prompts import read_prompts

from .engines import ids_of, told

FOLDER = Path(__file__).parent / "data" / "memorised"
TOKENS = 48

pytestmark = pytest.mark.slow


@cache
def memorised() -> Pair:
    return load(draft=str(FOLDER), dtype="float32", quiet=True)


@cache
def prompts() -> list[list[int]]:
    return [encode(memorised(), asked, None) for asked in read_prompts(FOLDER / "prompts.txt")]


@cache
def plain() -> list[list[int]]:
    """What the target says by itself."""
    alone = replace(memorised(), draft=None, steps={}, trials={})
    return [decode(alone, prompt)[0] for prompt in prompts()]


def decode(pair: Pair, prompt: Sequence[int], **options: Any) -> tuple[list[int], Stats]:
    stats, ids = Stats(), []
    for number, round_ in enumerate(decoded(pair, prompt, Options(max_tokens=TOKENS, **options))):
        stats.add(round_, first=number == 0)
        ids += round_.tokens
    return ids, stats


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 8), ({"block": 4}, 4), ({"compiled": True}, 8), ({"block": "auto"}, 8)],
    ids=["", "block 4", "compiled", "auto"],
)
def test_most_of_every_block_is_accepted(options: dict[str, Any], most: int) -> None:
    tokens = rounds = 0
    for prompt, text in zip(prompts(), plain(), strict=True):
        ids, stats = decode(memorised(), prompt, **options)
        assert ids == text
        tokens, rounds = tokens + stats.round_tokens, rounds + stats.rounds
    assert 0.75 * most < tokens / rounds <= most, tokens / rounds


def test_sampling_at_a_low_temperature_accepts_as_much() -> None:
    sampling = Sampling(temperature=0.05)
    ids, stats = decode(memorised(), prompts()[0], sampling=sampling, seed=1)
    assert len(ids) == TOKENS
    assert stats.round_tokens / stats.rounds > 6


def test_requests_that_share_rounds() -> None:
    with Engine(memorised()) as engine:
        tickets = [engine.submit(p, Options(max_tokens=TOKENS)) for p in prompts()]
        assert [ids_of(told(ticket)) for ticket in tickets] == plain()
        counters = engine.counters
    assert counters.accepted > 0.6 * counters.drafted
