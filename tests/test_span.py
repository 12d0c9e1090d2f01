"""A draft that keeps the first and the last rows of its context alone."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from dflash_mlx.config import FULL, SLIDING, DraftConfig
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.errors import UsageError
from dflash_mlx.generation import rounds
from dflash_mlx.kv import STEP, KVCache, masks
from dflash_mlx.loading import load
from dflash_mlx.options import AUTO, Options
from dflash_mlx.session import Session
from dflash_mlx.span import Span, span_of
from dflash_mlx.stats import Stats

from .choosers import Script, scripted
from .families import HIDDEN, WINDOW, ScriptedDraft, draft_config, make_pair, random_draft
from .test_lossless import ids_of, in_turn, truth

SPAN = Span(recent=70, sink=3)


def config_of(span: Span = SPAN, **more: Any) -> DraftConfig:
    return draft_config(**more).with_span(span)


def features(rows: int, seed: int = 0) -> mx.array:
    return mx.random.normal((1, rows, 2 * HIDDEN), key=mx.random.key(seed))


def block_behind(draft: DFlashDraft, cache: KVCache, fixed: bool = False) -> mx.array:
    """Hidden states of a block; the cache stays as it is, but for rows that do not count."""
    start, block = cache.length, mx.random.normal((1, 8, HIDDEN), key=mx.random.key(1))
    state = cache.begin(start, 8, fixed)
    at = mx.array(start, mx.int32) if fixed else start
    hidden, state = draft.forward(block, at, state)
    cache.update(state)
    return hidden


def extended(draft: DFlashDraft, cache: KVCache, rows: mx.array) -> None:
    state = cache.begin(cache.length, rows.shape[1], False)
    cache.update(draft.extend(rows, cache.length, state))
    cache.commit(rows.shape[1])


@pytest.mark.parametrize("start", [0, 2, 50, 73, 74, 200])
def test_who_sees_whom(start: int) -> None:
    cache = KVCache((SPAN,))
    found = masks((SPAN,), cache.state, start, 5, [False], shorthand=False)[0]
    query, key = start + np.arange(5)[:, None], np.arange(start + 5)[None]
    wanted = (key <= query) & ((key < SPAN.sink) | (key > query - SPAN.recent))
    assert np.array_equal(np.array(found), wanted)


@pytest.mark.parametrize("fixed", [False, True])
def test_rows_that_moved_are_the_same_rows(fixed: bool) -> None:
    """A context that grew in steps, dropping rows on the way, against one made at once."""
    layers = (FULL, SLIDING, FULL)
    config = config_of(
        num_layers=3, layer_types=layers, causal=(False, True, False), sliding_window=WINDOW
    )
    draft, rows = random_draft(config), features(1100)
    grown, done = draft.new_cache(), 0
    for step in (7, 300, 1, 250, 5, 260, 77, 200):
        extended(draft, grown, rows[:, done : done + step])
        done += step
        whole = draft.new_cache()
        extended(draft, whole, rows[:, :done])
        wanted = np.array(block_behind(draft, whole))
        assert np.allclose(np.array(block_behind(draft, grown, fixed)), wanted, atol=1e-5), done
    assert grown.state["base"][0] > 0
    assert max(a.shape[2] for a in grown.arrays()) <= 1024
    # Rows in the middle play no part, the first ones do.
    for place, plays in ((500, False), (1, True), (1095, True)):
        other = rows + (mx.arange(1100) == place)[None, :, None]
        changed = draft.new_cache()
        extended(draft, changed, other)
        same = np.allclose(np.array(block_behind(draft, changed)), wanted, atol=1e-5)
        assert same is not plays, place


def test_slots_are_bounded() -> None:
    draft = random_draft(config_of())
    cache = draft.new_cache()
    for seed in range(40):
        extended(draft, cache, features(100, seed))
    assert cache.length == 4000
    assert max(a.shape[2] for a in cache.arrays()) <= 768


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
@pytest.mark.parametrize("block", [None, AUTO])
def test_text_is_the_targets(family: str, block: Any) -> None:
    prompt, text = truth(family, 200, 60)
    pair = make_pair(family, ScriptedDraft(config_of(), prompt + text, in_turn(200, 8)))
    with scripted(Script((8, 2, 0, 5))):
        options = Options(max_tokens=60, block=block, prefill_chunk=48)
        assert ids_of(list(rounds(pair, prompt, options))) == text


@pytest.mark.parametrize("chunk", [7, 43, 200])
@pytest.mark.parametrize("span", [SPAN, Span(130, 60), None])
def test_a_prefill_projects_what_blocks_see(
    chunk: int, span: Span | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where chunks end plays no part, also where the rows not seen fill whole chunks."""
    if span is None:
        config = draft_config(layer_types=(SLIDING,) * 2, causal=(True,) * 2, sliding_window=WINDOW)
    else:
        config = config_of(span)
    recent, sink = span or (WINDOW, 0)
    spare = recent + STEP
    for total in (spare + 2 * chunk, spare + 81, sink + 5):
        draft = random_draft(config)
        pair, prompt = make_pair("llama", draft), truth("llama", 24)[0] * 60
        counted = 0
        extend = DFlashDraft.extend

        def count(self: DFlashDraft, rows: mx.array, *rest: Any, extend: Any = extend) -> Any:
            nonlocal counted
            counted += rows.shape[1]
            return extend(self, rows, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(DFlashDraft, "extend", count)
            session = Session(pair.target, draft)
            session.prefill(prompt[:total], chunk=chunk)
        assert counted == min(total, spare + sink)
        assert session.context is not None
        assert session.context.length == total
        whole = Session(pair.target, draft)
        _, kept, _ = whole.target.forward(
            mx.array([prompt[:total]]), 0, whole.cache.begin(0, total, False)
        )
        assert whole.context is not None and kept is not None
        extended(draft, whole.context, kept)
        wanted = np.array(block_behind(draft, whole.context))
        found = np.array(block_behind(draft, session.context))
        assert np.allclose(found, wanted, atol=1e-4), (total, chunk)


def test_a_session_goes_back_as_far_as_rows_are_there() -> None:
    """A little: more than blocks see is kept for it."""
    prompt, text = truth("llama", 400, 60)
    pair = make_pair("llama", random_draft(config_of(Span(64, 3))))
    session = Session(pair.target, pair.draft)
    list(rounds(pair, prompt + text, Options(max_tokens=30), session))
    for cut, cached in ((50, 449), (4, 403)):
        stats = Stats()
        again = rounds(pair, prompt + text[:cut], Options(max_tokens=8), session, stats)
        assert ids_of(list(again)) == text[cut : cut + 8]
        assert stats.cached_tokens == cached
    cache = KVCache((Span(64, 3),))
    cache.state["base"], cache.length = [300], 500
    assert cache.trim(366) == 366  # sees positions from 303 on, and 303 is in slot 3
    assert cache.trim(365) == 0


def test_what_cannot_be_is_refused() -> None:
    sliding = draft_config(layer_types=(SLIDING,) * 2, sliding_window=WINDOW)
    with pytest.raises(UsageError, match="every layer of the draft slides already, over 16"):
        sliding.with_span(SPAN)
    with pytest.raises(UsageError, match="draft window is 3, expected 64 or more"):
        span_of(3, 0)
    with pytest.raises(UsageError, match="draft sink is 64"):
        span_of(64, 64)
    with pytest.raises(UsageError, match="a draft window without a draft"):
        load(speculate=False, draft_window=100)


@pytest.mark.parametrize("length", [2, 60, 72, 75, 700])
def test_what_is_seen_can_be_kept_apart(length: int) -> None:
    """Copied out of one context and into another, as prefixes of conversations are."""
    draft, rows = random_draft(config_of()), features(700)
    cache = draft.new_cache()
    for first in range(0, length, 250):
        extended(draft, cache, rows[:, first : min(length, first + 250)])
    kept = [cache.copy_seen(index, length) for index in range(2)]
    other = draft.new_cache()
    other.resume(length, [[[part] for part in layer] for layer in kept if layer])
    assert other.length == length
    wanted = np.array(block_behind(draft, cache))
    assert np.allclose(np.array(block_behind(draft, other)), wanted, atol=1e-5)
