"""The engine with the prefix cache: conversations that overlap compute only what is new."""

import pytest

from dflash_mlx.engine import Engine
from dflash_mlx.options import Options
from dflash_mlx.prefix.cache import PrefixCache

from .engines import alone, ids_of, told
from .families import draft_config, make_pair, prompt_of, random_draft
from .tiny import tokenizer

TURNS, NEW, ANSWER = 3, 12, 9


@pytest.mark.parametrize("family", ["llama-sliding", "qwen3_5", "gemma4-shared", "kimi_k25"])
def test_conversations_side_by_side(family: str) -> None:
    draft = random_draft(draft_config(block_size=4))
    pair = make_pair(family, draft, tokenizer=tokenizer())
    prompts = [prompt_of(20 + 9 * i, seed=i) for i in range(3)]
    with Engine(pair, prefixes=PrefixCache(pair)) as engine:
        for turn in range(TURNS):
            before = engine.counters
            tickets = [engine.submit(p, Options(max_tokens=ANSWER)) for p in prompts]
            answers = [ids_of(told(ticket)) for ticket in tickets]
            assert answers == [alone(pair, p, Options(max_tokens=ANSWER)) for p in prompts]
            if turn:
                # The last token of an answer is in no cache; a hybrid goes back to a mark.
                computed = engine.counters.prefilled - before.prefilled
                assert computed <= 3 * (NEW + ANSWER + 8)
            prompts = [
                [*p, *answer, *prompt_of(NEW, seed=50 + 3 * turn + i)]
                for i, (p, answer) in enumerate(zip(prompts, answers, strict=True))
            ]
