"""A draft's context in 8 and 4 bits: the same text, nearly the same drafts, less memory."""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from dflash_mlx.config import FULL, SLIDING
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.engine import Engine
from dflash_mlx.errors import UsageError
from dflash_mlx.generation import rounds
from dflash_mlx.kernels.choice import kernels_of
from dflash_mlx.kv_quantised import KVBits
from dflash_mlx.loading import Pair
from dflash_mlx.options import AUTO, Options
from dflash_mlx.session import Session
from dflash_mlx.span import Span

from .engines import ids_of as told_ids
from .engines import told
from .families import draft_config, make_pair, plain_ids, prompt_of, random_draft
from .tiny import tokenizer

EIGHT, FOUR = KVBits(8, 32), KVBits(4, 32)
PROMPT = prompt_of(40)
COUNT = 80


def draft_of(**changes: Any) -> DFlashDraft:
    return random_draft(draft_config(head_dim=32, **changes))


def pair_of(kv: KVBits, **changes: Any) -> Pair:
    return make_pair("llama", draft_of(**changes).with_kv(kv), tokenizer=tokenizer())


def ids_of(pair: Pair, **options: Any) -> list[int]:
    done = rounds(pair, PROMPT, Options(max_tokens=COUNT, **options))
    return [token for round_ in done for token in round_.tokens]


SLIDES = {"layer_types": (SLIDING, FULL), "causal": (True, False), "sliding_window": 16}


@pytest.mark.parametrize("kv", [EIGHT, FOUR], ids=str)
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({}, {"compiled": True}),
        ({}, {"block": AUTO}),
        (SLIDES, {}),
        ({"span": Span(24, 4)}, {}),
    ],
    ids=["", "compiled", "auto", "sliding", "window"],
)
def test_the_text_is_the_targets(kv: KVBits, changes: Any, options: Any) -> None:
    assert ids_of(pair_of(kv, **changes), **options) == plain_ids("llama", PROMPT, COUNT)


def test_with_kernels() -> None:
    pair = pair_of(EIGHT)
    pair.kernels = kernels_of("on", 1)
    assert ids_of(pair) == plain_ids("llama", PROMPT, COUNT)


def hidden_of(draft: DFlashDraft) -> mx.array:
    """What the network makes of a block behind a context."""
    key = mx.random.key(1)
    features = mx.random.normal((1, 30, 2 * draft.config.hidden_size), key=key)
    context = draft.new_cache()
    context.update(draft.extend(features, 0, context.begin(0, 30, fixed=False)))
    context.commit(30)
    block = mx.random.normal((1, 8, draft.config.hidden_size), key=mx.random.key(2))
    return draft.forward(block, 30, context.begin(30, 8, fixed=False))[0]


def test_bits_change_little_and_four_more_than_eight() -> None:
    draft = draft_of(**SLIDES)
    whole = hidden_of(draft)
    eight, four = (mx.abs(hidden_of(draft.with_kv(kv)) - whole).max() for kv in (EIGHT, FOUR))
    assert 0 < eight.item() < 0.05 * mx.abs(whole).max().item()
    assert eight.item() < four.item()


def test_the_context_takes_less() -> None:
    def context(pair: Pair) -> int:
        session = Session(pair.target, pair.draft)
        for _ in session.prefilling(PROMPT, chunk=512):
            pass
        session.flush()
        assert session.context is not None
        return sum(a.nbytes for layer in session.context.state["layers"] for a in layer)

    whole = context(make_pair("llama", draft_of()))
    # In float32 with groups of 32: 8 bits and 2 x 32 / 32 of scales and biases, of 32.
    assert context(pair_of(EIGHT)) == pytest.approx(whole * 10 / 32, rel=0.01)


def test_requests_of_an_engine_take_turns() -> None:
    with Engine(pair_of(EIGHT)) as engine:
        tickets = [engine.submit(PROMPT, Options(max_tokens=COUNT)) for _ in range(3)]
        for ticket in tickets:
            assert told_ids(told(ticket)) == plain_ids("llama", PROMPT, COUNT)


def test_a_group_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="--draft-kv-bits in groups of 64 does not fit"):
        draft_of().with_kv(replace(EIGHT, group=64))
