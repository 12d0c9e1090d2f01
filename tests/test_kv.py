"""Where keys and values are written."""

import mlx.core as mx
import numpy as np
import pytest

from dflash_mlx.generation import rounds
from dflash_mlx.options import Options
from dflash_mlx.session import Session

from .families import ScriptedDraft, draft_config, make_pair, plain_ids, prompt_of

PROMPT = prompt_of(20)


@pytest.mark.parametrize("family", ["llama", "llama-sliding", "qwen3_5"])
@pytest.mark.parametrize("compiled", [True, False])
def test_rounds_write_keys_and_values_in_place(family: str, compiled: bool) -> None:
    """A copy of the caches in every round would cost more than the round at a long context."""
    truth = PROMPT + plain_ids(family, PROMPT, 60)
    pair = make_pair(family, ScriptedDraft(draft_config(), truth, lambda start: 5))
    session = Session(pair.target, pair.draft)
    places = []
    for _ in rounds(pair, PROMPT, Options(max_tokens=40, compiled=compiled), session):
        places.append([address(a) for a in kept_rows(session)])
    assert len(places) > 4
    assert all(place == places[1] for place in places[2:])


def kept_rows(session: Session) -> list[mx.array]:
    assert session.context is not None
    caches = (session.cache, session.context)
    return [a for cache in caches for pair in cache.state["layers"] if pair for a in pair]


def address(array: mx.array) -> int:
    mx.eval(array)
    return int(np.asarray(array).__array_interface__["data"][0])
