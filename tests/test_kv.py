"""Where keys and values are written."""

import pytest

from dflash_mlx.generation import rounds
from dflash_mlx.options import Options
from dflash_mlx.session import Session

from .families import (
    ScriptedDraft,
    address,
    draft_config,
    kept_rows,
    make_pair,
    plain_ids,
    prompt_of,
)

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
