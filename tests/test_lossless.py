"""Greedy output is the target's own, whatever the draft proposes and wherever it is wrong."""

from collections.abc import Callable
from functools import cache

import mlx.core as mx
import pytest

from dflash_mlx.config import FULL, SLIDING
from dflash_mlx.generation import rounds
from dflash_mlx.kv import Scalar
from dflash_mlx.loading import Pair
from dflash_mlx.options import Options
from dflash_mlx.session import Session
from dflash_mlx.stats import Round

from .families import (
    FAMILIES,
    WINDOW,
    ScriptedDraft,
    draft_config,
    make_pair,
    plain_text,
    prompt_of,
    random_draft,
)

LENGTH = 48


@cache
def truth(family: str, prompt_length: int, count: int = LENGTH) -> tuple[list[int], list[int]]:
    """A prompt and its greedy continuation, without a place where two tokens all but tie.

    At such a place float32 itself decides by the order of its sums, which differs with the width.
    """
    for seed in range(4):
        prompt = prompt_of(prompt_length, seed)
        text, margin = plain_text(family, prompt, count)
        if margin > 1e-5:
            return prompt, text
    raise AssertionError(f"{family} ties everywhere")


def always(place: int) -> Callable[[Scalar], Scalar]:
    return lambda start: place


def mixed(block: int) -> Callable[[Scalar], Scalar]:
    places = mx.random.randint(0, block, (2048,), key=mx.random.key(block))
    return lambda start: places[start]


def scripted(family: str, prompt_length: int, block: int, wrong: Callable[..., Scalar]) -> Pair:
    prompt, text = truth(family, prompt_length)
    return make_pair(family, ScriptedDraft(draft_config(block_size=block), prompt + text, wrong))


def run(pair: Pair, prompt: list[int], **options: object) -> list[Round]:
    return list(rounds(pair, prompt, Options(max_tokens=LENGTH, **options)))  # type: ignore[arg-type]


def ids_of(done: list[Round]) -> list[int]:
    return [token for round_ in done for token in round_.tokens]


# Every block size with every acceptance; the prompt lengths go through 1..70 along the way.
CELLS = [(block, accepted) for block in range(2, 17) for accepted in range(block)]


@pytest.mark.parametrize("family", ["llama", "llama-tied", "llama-sliding", "qwen3", "qwen3_moe"])
def test_every_acceptance_in_every_block(family: str) -> None:
    lengths = set()
    for index, (block, accepted) in enumerate(CELLS):
        length = 1 + index % 70
        lengths.add(length)
        prompt, text = truth(family, length)
        done = run(scripted(family, length, block, always(accepted)), prompt)
        where = f"block {block}, accepted {accepted}, prompt {length}"
        assert ids_of(done) == text, where
        # The last round may be cut by max_tokens, the first is the prefill's.
        assert {r.accepted for r in done[1:-1]} <= {accepted}, where
    assert lengths == set(range(1, 71))


# One token, two, a short prompt, one beyond the window, one beyond several.
LENGTHS = (1, 2, 24, WINDOW + 3, 70)


def in_turn(length: int, block: int) -> Callable[[Scalar], Scalar]:
    """Every acceptance 0..block-1 one round after the other, behind a prompt of `length`."""
    places, position, accepted = [0] * 2048, length, 0
    while position < 2048 - block:
        places[position] = accepted
        position, accepted = position + accepted + 1, (accepted + 1) % block
    table = mx.array(places, mx.int32)
    return lambda start: table[start]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_long_text_with_every_acceptance_in_turn(family: str) -> None:
    """300 tokens: every acceptance of a block follows every other, far beyond the windows."""
    for block in range(2, 17):
        length = LENGTHS[block % len(LENGTHS)]
        prompt, text = truth(family, length, 300)
        draft = ScriptedDraft(draft_config(block_size=block), prompt + text, in_turn(length, block))
        done = list(rounds(make_pair(family, draft), prompt, Options(max_tokens=300)))
        assert ids_of(done) == text, (block, length)
        assert {r.accepted for r in done[1:-1]} == set(range(block)), (block, length)


@pytest.mark.parametrize("family", FAMILIES)
def test_end_of_text_inside_a_block(family: str) -> None:
    """Wherever the text ends in a block, the conversation goes on as if never stopped."""
    prompt, text = truth(family, 24)
    block = 8
    first = {token: text.index(token) for token in reversed(text)}
    for place in sorted(first.values())[1:6]:
        draft = ScriptedDraft(draft_config(block_size=block), prompt + text, always(block - 1))
        pair = make_pair(family, draft, eos_ids=[text[place]])
        session = Session(pair.target, pair.draft)
        done = list(rounds(pair, prompt, Options(max_tokens=LENGTH), session))
        assert ids_of(done) == text[: place + 1]
        assert done[-1].finish_reason == "stop"
        more = make_pair(family, draft)
        later = list(rounds(more, prompt + text[: place + 3], Options(max_tokens=12), session))
        assert ids_of(later) == text[place + 3 : place + 15]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [4, 16])
def test_compiled_rounds(family: str, block: int) -> None:
    prompt, text = truth(family, 24)
    pair = scripted(family, 24, block, mixed(block))
    assert ids_of(run(pair, prompt, compiled=True)) == text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("compiled", [False, True])
def test_plain_decoding(family: str, compiled: bool) -> None:
    prompt, text = truth(family, 24)
    pair = make_pair(family, None)
    assert ids_of(run(pair, prompt, compiled=compiled)) == text
    with_draft = make_pair(family, random_draft(draft_config()))
    assert ids_of(run(with_draft, prompt, speculate=False)) == text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefill_chunk", [1, 7, 512])
def test_prefill_in_chunks(family: str, prefill_chunk: int) -> None:
    prompt, text = truth(family, 41)
    pair = scripted(family, 41, 8, mixed(8))
    assert ids_of(run(pair, prompt, prefill_chunk=prefill_chunk)) == text


@pytest.mark.parametrize("family", ["llama", "llama-sliding"])
@pytest.mark.parametrize("compiled", [False, True])
def test_long_text_grows_the_caches(family: str, compiled: bool) -> None:
    """Beyond several steps of slots, and many times around the window."""
    prompt, text = truth(family, 300, 700)
    config = draft_config(
        num_layers=3,
        layer_types=(FULL, SLIDING, SLIDING),
        causal=(False, True, False),
        sliding_window=WINDOW,
    )
    draft = ScriptedDraft(config, prompt + text, mixed(8))
    pair = make_pair(family, draft)
    done = list(rounds(pair, prompt, Options(max_tokens=700, compiled=compiled)))
    assert ids_of(done) == text
    assert {r.accepted for r in done[1:-1]} == set(range(8))


def test_sliding_draft_layers_are_bounded() -> None:
    prompt, text = truth("llama", 300, 700)
    config = draft_config(layer_types=(SLIDING,) * 2, causal=(True,) * 2, sliding_window=WINDOW)
    draft = ScriptedDraft(config, prompt + text, mixed(8))
    pair = make_pair("llama", draft)
    session = Session(pair.target, pair.draft)
    done = list(rounds(pair, prompt, Options(max_tokens=700), session))
    assert ids_of(done) == text
    assert session.context is not None
    assert max(a.shape[2] for a in session.context.arrays()) <= 768
    assert session.context.length + 1 >= session.cache.length - 8


@pytest.mark.parametrize("family", FAMILIES)
def test_random_draft(family: str) -> None:
    prompt, text = truth(family, 33)
    assert ids_of(run(make_pair(family, random_draft(draft_config())), prompt)) == text


def test_a_wrong_rollback_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix above can fail: keeping one rejected row too many changes the text."""
    prompt, text = truth("llama", 24)
    pair = scripted("llama", 24, 8, always(3))
    commit = Session.commit

    def sloppy(self: Session, tokens: list[int], features: object) -> None:
        commit(self, [*tokens, tokens[-1]], features)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "commit", sloppy)
    assert ids_of(run(pair, prompt)) != text
