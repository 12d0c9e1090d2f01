"""Requests that begin like earlier ones compute only what is new, and answer the same."""

import mlx.core as mx
import pytest

from dflash_mlx.generation import rounds
from dflash_mlx.prefix.cache import TAIL, PrefixCache, PrefixOptions
from dflash_mlx.prefix.snapshot import Layout
from dflash_mlx.session import Session

from .families import (
    FAMILIES,
    ScriptedDraft,
    address,
    draft_config,
    kept_rows,
    make_pair,
    plain_ids,
    prompt_of,
)
from .prefixes import KINDS, alone, ask, bits, growing, options, pair_of

TURNS = 20


@pytest.mark.parametrize("family", KINDS)
def test_twenty_turns_compute_only_what_is_new(family: str) -> None:
    cache = PrefixCache(pair_of(family))
    prompt: list[int] = []
    for turn, question in enumerate(growing(TURNS)):
        prompt = prompt + question
        answer = ask(cache, prompt)
        # The last token of an answer has no row yet.
        assert answer.computed == len(question) + (turn > 0)
        if turn in (1, TURNS - 1):
            assert answer.ids == alone(cache.pair, prompt)
        prompt = prompt + answer.ids


OPENING = [3, 1, 4, 1, 5]  # what a template puts before an answer, and takes away afterwards


@pytest.mark.parametrize(
    ("family", "known"),
    [("qwen3", True), ("gpt_oss", True), ("qwen3_5", True), ("qwen3_5", False)],
)
def test_twenty_turns_that_drop_reasoning(family: str, known: bool) -> None:
    """Of each answer only its end stays in the next prompt, and the opening changes."""
    cache = PrefixCache(pair_of(family))
    history: list[int] = []
    before = 0
    for turn, question in enumerate(growing(TURNS)):
        stable = len(history) + len(question)
        new, before = stable - before, stable
        history = history + question
        answer = ask(cache, history + OPENING, stable=stable if known else None)
        computed = answer.computed - len(OPENING)
        if turn and (known or not cache.marked):
            assert computed <= new
        else:
            assert computed <= new + TAIL
        if turn in (1, TURNS - 1):
            assert answer.ids == alone(cache.pair, history + OPENING)
        history = [*history, 60, *answer.ids[-2:]]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_after_a_hit_are_those_without(family: str) -> None:
    """For every family, with all widths of acceptance, at an end and in the middle."""
    first = prompt_of(50)
    truth = first + plain_ids(family, first, 30)
    draft = ScriptedDraft(draft_config(), truth, lambda start: start % 8)
    cache = PrefixCache(make_pair(family, draft))
    assert ask(cache, first, options(20)).ids == truth[50:70]
    # Goes on from the first answer.
    ahead = ask(cache, truth[:71], options(9))
    assert ahead.ids == truth[71:80] and ahead.computed <= 2
    # Leaves it in the middle of the prompt.
    other = first[:40] + prompt_of(10, seed=5)
    beside = ask(cache, other, options(6))
    assert beside.ids == plain_ids(family, other, 6)
    assert beside.computed <= 10 + TAIL


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3_5"])
def test_a_second_prompt_that_leaves_at_the_same_place_computes_just_its_own(family: str) -> None:
    cache = PrefixCache(pair_of(family))
    shared = prompt_of(61)
    computed = [ask(cache, [*shared, i, *prompt_of(30, seed=i)]).computed for i in range(4)]
    assert computed[0] == 92 and computed[1] <= 31 + 24 and computed[2:] == [31, 31]


@pytest.mark.parametrize("window", [8, 40])
@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_drafts_with_windows(family: str, window: int) -> None:
    cache = PrefixCache(pair_of(family, window))
    prompt: list[int] = []
    for question in growing(5, first=90):
        prompt = prompt + question
        answer = ask(cache, prompt)
        assert answer.ids == alone(cache.pair, prompt)
        prompt = prompt + answer.ids
    assert answer.computed == len(question) + 1
    # What a draft with windows does not need at a prompt's end, another prompt may.
    leaving = prompt[:60] + prompt_of(10, seed=9)
    beside = ask(cache, leaving)
    assert beside.computed <= 10 + 24 and beside.ids == alone(cache.pair, leaving)
    # The context is the one that a prefill makes, as far as the draft sees.
    session, fresh = cache.take(prompt), Session(cache.pair.target, cache.pair.draft)
    fresh.prefill(prompt[: len(session.ids)], chunk=24)
    assert session.context is not None and fresh.context is not None
    first = len(session.ids) - window + 1
    for index in range(2):
        ours = session.context.copy(index, first, len(session.ids))
        theirs = fresh.context.copy(index, first, len(session.ids))
        assert all(mx.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "qwen3_5"])
def test_two_sessions_from_one_entry_do_not_disturb_each_other(family: str) -> None:
    cache = PrefixCache(pair_of(family))
    prompt = prompt_of(40)
    prompt = prompt + ask(cache, prompt).ids
    kept = bits(cache)
    texts = [prompt + prompt_of(4, seed=i) for i in (1, 2)]
    sessions = [cache.take(text) for text in texts]
    assert all(len(s.ids) == len(prompt) - 1 for s in sessions)
    runs = [rounds(cache.pair, t, options(8), s) for t, s in zip(texts, sessions, strict=True)]
    answers: list[list[int]] = [[], []]
    for pair in zip(*runs, strict=True):  # a round of each in turn
        for answer, one in zip(answers, pair, strict=True):
            answer += one.tokens
    assert answers == [alone(cache.pair, text, options(8)) for text in texts]
    assert bits(cache) == kept


@pytest.mark.parametrize("family", ["gemma4-shared", "qwen3_5", "kimi_k25"])
def test_a_hit_copies_once(family: str) -> None:
    """Rounds of a session that was taken, and was put again, write in place."""
    prompt = prompt_of(40)
    truth = prompt + plain_ids(family, prompt, 60)
    draft = ScriptedDraft(draft_config(), truth, lambda start: 3)
    cache = PrefixCache(make_pair(family, draft))
    ask(cache, prompt, options(6))
    kept = bits(cache)
    session = cache.take(truth[:46])
    assert len(session.ids) == 45
    places = []
    for _ in rounds(cache.pair, truth[:46], options(30, block=8), session):
        places.append([address(a) for a in kept_rows(session)])
        if len(places) == 4:
            cache.put(session)
    assert len(places) > 6
    assert all(place == places[1] for place in places[2:])
    still = bits(cache)
    assert any(e.ids for e in kept) and all(still.get(e, kept[e]) == kept[e] for e in kept)


@pytest.mark.parametrize("family", ["gemma4-shared", "qwen3_5", "kimi_k25"])
def test_what_is_kept_is_counted_and_kept_once(family: str) -> None:
    """A longer text adds its own rows, not those it shares, and no slots that are empty."""
    cache = PrefixCache(pair_of(family))
    prompt = prompt_of(100)
    ask(cache, prompt)
    row = cache.layout.row_nbytes()
    longer = prompt + prompt_of(30, seed=2)
    ask(cache, longer)
    rows = sum(e.nbytes for e in cache._tree if e.ids)
    # Both end with an answer, of which two tokens have rows.
    assert rows == row * 134
    assert (
        cache.nbytes
        == sum(len(b) for e in bits(cache).values() for b in e)
        == cache.statistics().nbytes
    )


@pytest.mark.parametrize("family", ["gemma4-shared", "qwen3_5"])
def test_the_budget_holds_and_what_was_used_last_stays(family: str) -> None:
    pair = pair_of(family)
    whole = PrefixCache(pair)
    ask(whole, prompt_of(60, seed=1))
    budget = whole.nbytes * 5 // 2
    cache = PrefixCache(pair, PrefixOptions(memory=budget))
    for seed in (1, 2, 1, 3, 1, 4):
        prompt = prompt_of(60, seed=seed)
        assert ask(cache, prompt).ids == alone(pair, prompt)
        assert cache.nbytes <= budget
    assert cache.nbytes > budget // 2
    assert cache.statistics().evicted > 0
    assert ask(cache, prompt_of(60, seed=1)).computed <= TAIL
    assert ask(cache, prompt_of(60, seed=2)).computed == 60


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5"])
def test_a_prompt_larger_than_the_budget_is_served(family: str) -> None:
    pair = pair_of(family)
    cache = PrefixCache(pair)
    ask(cache, prompt_of(60))
    small = PrefixCache(pair, PrefixOptions(memory=cache.nbytes // 3))
    for _ in range(2):
        assert ask(small, prompt_of(60)).ids == alone(pair, prompt_of(60))
        assert small.nbytes <= small.options.memory
    nothing = PrefixCache(pair, PrefixOptions(memory=0))
    assert ask(nothing, prompt_of(60)).computed == 60
    assert ask(nothing, prompt_of(60)).computed == 60


def test_marks_of_a_long_prompt_thin_out() -> None:
    """Near its end they are close, far from it rare: their number grows with the logarithm."""
    cache = PrefixCache(pair_of("qwen3_5"))
    prompt = prompt_of(700)
    ask(cache, prompt, options(2))
    marks = sorted(e.start for e in cache._tree if not e.ids)
    assert 5 <= len(marks) <= 12
    other = prompt[:400] + prompt_of(100, seed=3)
    assert ask(cache, other, options(2)).computed <= 100 + 300 + 24


def test_a_cancelled_request_leaves_what_it_computed() -> None:
    cache = PrefixCache(pair_of("qwen3_5"))
    prompt = prompt_of(100)
    session = cache.take(prompt)
    seen = []

    def stop(done: int, _: int) -> None:
        cache.checkpoint(session)
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(rounds(cache.pair, prompt, options(), session, progress=stop))
    cache.put(session)
    assert ask(cache, prompt).computed == 100 - 72


def test_a_pair_without_a_draft() -> None:
    pair = make_pair("qwen3_5", None)
    cache = PrefixCache(pair)
    first = ask(cache, prompt_of(40))
    longer = prompt_of(40) + first.ids + [1, 2]
    second = ask(cache, longer)
    assert second.computed == 3
    assert second.ids == alone(pair, longer)


def test_statistics() -> None:
    cache = PrefixCache(pair_of("llama"))
    ask(cache, prompt_of(40))
    ask(cache, prompt_of(40))
    found = cache.statistics()
    assert (found.requests, found.hits, found.asked, found.found) == (2, 1, 80, 39)
    assert found.entries == len(list(cache._tree)) > 0
    assert (found.disk, found.evicted, found.discarded) == (0, 0, 0)


def test_no_pass_is_run_but_those_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several processes share a target, a pass of one alone would wait for ever."""

    def fail(_: object) -> None:
        raise AssertionError("a pass of its own")

    monkeypatch.setattr(Layout, "of", fail)
    cache = PrefixCache(pair_of("qwen3_5"))
    prompt = prompt_of(40)
    prompt = prompt + ask(cache, prompt).ids
    assert ask(cache, prompt).computed == 1
