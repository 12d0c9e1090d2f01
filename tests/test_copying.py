"""Rounds with lookup drafts: the text is the target's own, whatever is copied."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from dflash_mlx import accept
from dflash_mlx.accept import accept_given, accept_sampled
from dflash_mlx.engine import Engine, EngineOptions
from dflash_mlx.errors import UsageError
from dflash_mlx.exactness import fit, sample
from dflash_mlx.generation import rounds
from dflash_mlx.loading import Pair
from dflash_mlx.lookup import Lookup, Match
from dflash_mlx.options import AUTO, Options
from dflash_mlx.sampling import Sampling
from dflash_mlx.session import Session
from dflash_mlx.stats import Round, Stats

from .choosers import Script, priced, scripted
from .families import VOCAB, ScriptedDraft, draft_config, make_pair, random_draft
from .test_accept import DRAWS, WIDTH, chi_square, distributions
from .test_lossless import ids_of, in_turn, truth
from .tiny import tokenizer

COUNT = 48


class Told(Lookup):
    """Finds the true continuation, wrong at a place that goes round, at every third anchor."""

    def __init__(self, text: Sequence[int], vocab: int) -> None:
        super().__init__()
        self._text, self._vocab, self._turn = list(text), vocab, 0

    def follow(self, ids: Sequence[int], anchor: int) -> Match | None:
        super().follow(ids, anchor)
        assert [*ids, anchor] == self._text[: len(ids) + 1]
        self._turn += 1
        if self._turn % 3 == 1:
            return None
        tokens = [*self._text[len(ids) + 1 :], *[0] * 16][:16]
        wrong = self._turn % 9
        tokens[wrong] = (tokens[wrong] + 1) % self._vocab
        return Match(tuple(tokens), 30)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[int]], None]:
    def tell(text: Sequence[int]) -> None:
        for module in ("adaptive", "copying"):
            name = f"dflash_mlx.{module}.Lookup"
            monkeypatch.setattr(name, lambda: Told(text, VOCAB))

    return tell


Tell = Callable[[Sequence[int]], None]


def run(pair: Pair, prompt: Sequence[int], script: Script, **options: Any) -> list[Round]:
    with scripted(script):
        given = {"max_tokens": COUNT, "block": AUTO, **options}
        return list(rounds(pair, prompt, Options(**given)))


WIDTHS, COPIES = (8, 1, 2, 0, 3, 5, 0, 4), (3, 0, 8, 2, 0, 16, 5, 4, 9)


# Every way to roll back: by length, by window, by replay, of latents, of shared rows.
WAYS = (
    "llama-sliding",
    "qwen3_next",
    "qwen3_5",
    "kimi_k25",
    "glm_moe_dsa",
    "gpt_oss",
    "gemma4-shared",
)


@pytest.mark.parametrize("family", WAYS)
def test_every_family_goes_back_behind_a_copy(family: str, told: Tell) -> None:
    """Copies of all widths with all acceptances, among blocks and rests."""
    prompt, text = truth(family, 24)
    told(prompt + text)
    draft = ScriptedDraft(draft_config(), prompt + text, in_turn(24, 8))
    script = Script(WIDTHS, rest=3, copies=COPIES)
    done = run(make_pair(family, draft), prompt, script)
    assert ids_of(done) == text
    copied = [r for r in done if r.copied]
    assert len({r.accepted for r in copied}) > 2
    assert any(r.drafted and not r.copied for r in done)


@pytest.mark.parametrize("family", ["llama-sliding", "qwen3_5"])
def test_fixed_blocks_and_plain_decoding_with_copies(family: str, told: Tell) -> None:
    prompt, text = truth(family, 24)
    told(prompt + text)
    draft = ScriptedDraft(draft_config(), prompt + text, lambda _: 2)
    ways: list[dict[str, Any]] = [{}, {"block": 4}, {"speculate": False}]
    for way in ways:
        options = Options(max_tokens=COUNT, lookup="on", **way)
        done = list(rounds(make_pair(family, draft), prompt, options))
        assert ids_of(done) == text, way
        copied = [r for r in done if r.copied]
        assert copied, way
        assert {r.drafted for r in copied[:-1]} <= {way.get("block", 8) - 1}, way
    alone = make_pair(family, None)
    done = list(rounds(alone, prompt, Options(max_tokens=COUNT, lookup="on")))
    assert ids_of(done) == text
    assert any(r.copied for r in done)


def test_compiled_rounds(told: Tell) -> None:
    prompt, text = truth("qwen3_5", 24)
    told(prompt + text)
    draft = ScriptedDraft(draft_config(block_size=4), prompt + text, lambda _: 2)
    pair = make_pair("qwen3_5", draft)
    assert ids_of(run(pair, prompt, Script((4, 0), copies=(4, 0)), compiled=True)) == text
    fixed = Options(max_tokens=COUNT, lookup="on", compiled=True)
    assert ids_of(list(rounds(pair, prompt, fixed))) == text


def test_the_context_is_exact_behind_copies(told: Tell) -> None:
    """Rows that lookup drafts brought wait and are added: blocks promise what they always do."""
    prompt, text = truth("llama-sliding", 24)
    told(prompt + text)
    pair = make_pair("llama-sliding", random_draft(draft_config(num_layers=2)))

    def certainty_of(copies: Sequence[int]) -> dict[int, list[float]]:
        script, session = Script((1, 2, 0), copies=copies), Session(pair.target, pair.draft)
        places: dict[int, list[float]] = {}
        with scripted(script):
            options = Options(max_tokens=COUNT, block=AUTO)
            for _ in rounds(pair, prompt, options, session):
                if script.certainty and len(script.certainty) > len(places):
                    assert session.context is not None
                    places[len(session.ids)] = script.certainty[-1]
        return places

    # Keyed by the length behind the round; compare through the tokens: blocks at the same anchor.
    plain, copied = certainty_of((0,)), certainty_of((3, 0, 9))
    values = list(plain.values())
    same = sum(any(np.allclose(v, w, atol=1e-5) for w in values) for v in copied.values())
    assert same == len(copied) > 5


def test_features_wait_in_the_session(told: Tell) -> None:
    prompt, text = truth("llama", 24)
    told(prompt + text)
    pair = make_pair("llama", ScriptedDraft(draft_config(), prompt + text, lambda _: 5))
    session = Session(pair.target, pair.draft)
    behind = []
    with scripted(Script((8,), copies=(2,))):
        for _ in rounds(pair, prompt, Options(max_tokens=COUNT, block=AUTO), session):
            assert session.context is not None
            waiting = 0 if session.features is None else session.features.shape[1]
            assert session.cache.length - session.context.length == waiting
            behind.append(waiting)
    assert max(behind) > 2
    session.flush()
    assert session.context is not None
    assert session.context.length == session.cache.length


@pytest.mark.parametrize("family", ["llama-sliding", "qwen3_5"])
def test_leaving_behind_a_copy(family: str, told: Tell) -> None:
    """The next generation of the session goes on from there."""
    prompt, text = truth(family, 24)
    told(prompt + text)
    draft = ScriptedDraft(draft_config(), prompt + text, lambda _: 5)
    for left_after in (2, 3, 4, 6):
        pair = make_pair(family, draft)
        session, stats = Session(pair.target, pair.draft), Stats()
        with scripted(Script((3, 0), copies=(4, 0, 2))):
            source = rounds(pair, prompt, Options(max_tokens=30, block=AUTO), session)
            seen = ids_of([next(source) for _ in range(left_after)])
            source.close()  # type: ignore[attr-defined]
            told(prompt + text)
            options = Options(max_tokens=8, block=AUTO)
            longer = prompt + text[: len(seen) + 2]
            done = list(rounds(pair, longer, options, session, stats))
        assert ids_of(done) == text[len(seen) + 2 :][:8]


def test_max_tokens_anywhere(told: Tell) -> None:
    prompt, text = truth("llama", 24)
    for count in range(1, 14):
        told(prompt + text)
        draft = ScriptedDraft(draft_config(), prompt + text, lambda _: 5)
        script = Script((3, 0), copies=(8, 0, 5))
        done = run(make_pair("llama", draft), prompt, script, max_tokens=count)
        assert ids_of(done) == text[:count]


def test_lookups_are_counted(told: Tell) -> None:
    prompt, text = truth("llama", 24)
    told(prompt + text)
    pair = make_pair("llama", ScriptedDraft(draft_config(), prompt + text, lambda _: 5))
    stats = Stats()
    for index, round_ in enumerate(run(pair, prompt, Script((3,), copies=(4, 0)))):
        stats.add(round_, first=index == 0)
    copied = stats.copied
    assert 0 < copied.rounds < stats.rounds
    assert 0 < copied.accepted < copied.drafted < stats.drafted
    assert stats.as_dict()["lookup"] == {
        "rounds": copied.rounds,
        "drafted": copied.drafted,
        "accepted": copied.accepted,
    }


def test_text_that_repeats_itself_is_copied_and_only_where_wanted() -> None:
    """By the real index: the reduced model falls into a loop, as models do."""
    prompt, text = truth("llama", 24, 120)
    pair = priced(make_pair("llama", random_draft(draft_config())))

    def copied(**options: Any) -> int:
        done = list(rounds(pair, prompt, Options(max_tokens=120, **options)))
        assert ids_of(done) == text
        return sum(r.copied for r in done)

    assert copied(block=AUTO) > 0
    assert copied(block=AUTO, lookup="off") == copied(speculate=False) == 0
    assert copied(lookup="on") > 0
    assert copied(lookup="on", speculate=False) > 0


def test_other_words_are_refused() -> None:
    with pytest.raises(UsageError, match="lookup is 'maybe', expected auto, on or off"):
        Options(lookup="maybe")  # type: ignore[arg-type]


# Sampling: a lookup draft is a token that follows from the text, whatever p says of it.


@cache
def given() -> tuple[mx.array, mx.array]:
    """Drafted [WIDTH - 1], a likely, an unlikely and a middling token; log p [WIDTH, VOCAB]."""
    _, logp = distributions({"temperature": 1.0})
    ordered = mx.argsort(logp, axis=-1)
    drafted = mx.array([int(ordered[0, -1]), int(ordered[1, -2]), int(ordered[2, 3])], mx.int32)
    return drafted, logp


def worst_score(rule: Callable[..., mx.array]) -> float:
    drafted, logp = given()
    keys = mx.random.split(mx.random.key(2), DRAWS)
    done = np.array(mx.vmap(lambda key: rule(drafted, logp, key))(keys))
    scores = []
    for place in range(WIDTH):
        reached = done[done[:, 0] >= place]
        if len(reached) > 500:
            counts = np.bincount(reached[:, 1 + place], minlength=logp.shape[1])
            probs = np.exp(np.array(logp[place], np.float64))
            scores.append(chi_square(counts, probs / probs.sum()))
    assert len(scores) > 2
    return max(scores)


def test_sampling_behind_a_copy_is_exact() -> None:
    assert worst_score(accept_given) < 5


def test_it_is_the_general_rule_for_a_certain_draft() -> None:
    drafted, logp = given()
    certain = mx.where(mx.arange(logp.shape[1]) == drafted[:, None], 0.0, -mx.inf)
    for seed in range(50):
        key = mx.random.key(seed)
        wanted = accept_sampled(drafted, certain, logp, key).tolist()
        assert accept_given(drafted, logp, key).tolist()[: wanted[0] + 2] == wanted[: wanted[0] + 2]


def test_drawing_a_rejected_token_again_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "_without", lambda logp, token: logp)
    assert worst_score(accept_given) > 8


def test_keeping_what_is_likely_is_noticed() -> None:
    """Instead of with its probability: a token above one half is always kept."""

    def greedy(drafted: mx.array, logp: mx.array, key: mx.array) -> mx.array:
        likely = mx.take_along_axis(logp[:-1], drafted[:, None], axis=-1) > mx.log(mx.array(0.25))
        there = mx.arange(logp.shape[1]) == drafted[:, None]
        raised = mx.where(there & likely, 0.0, logp[:-1])
        return accept_given(drafted, mx.concatenate([raised, logp[-1:]]), key)

    assert worst_score(greedy) > 8


def test_a_certain_token_is_kept_and_an_excluded_one_is_not() -> None:
    logp = mx.log(mx.array([[0.0, 1.0], [0.0, 1.0]]))
    for seed in range(20):
        key = mx.random.key(seed)
        assert accept_given(mx.array([1]), logp, key).tolist() == [1, 1, 1]
        assert accept_given(mx.array([0]), logp, key).tolist()[:2] == [0, 1]


def test_sampled_text_has_the_targets_distribution() -> None:
    """Whole generations with the real index; the first tokens are so likely that text repeats."""
    prompt, _ = truth("llama", 24)
    pair = priced(make_pair("llama", random_draft(draft_config(block_size=4))))
    places: list[float] = []
    sampling = Sampling(temperature=0.3, top_k=3)
    copied = 0
    for seed in range(6):
        options = Options(max_tokens=28, block=AUTO, seed=seed, sampling=sampling)
        found = sample(pair, prompt + prompt, options)
        assert found.same
        places += found.places
        copied += sum(r.copied for r in rounds(pair, prompt + prompt, options))
    assert copied > 5
    assert fit(places).exact


def test_requests_of_an_engine_copy_too() -> None:
    prompt, text = truth("llama", 24, 70)
    pair = make_pair("llama", random_draft(draft_config()), tokenizer=tokenizer())
    wanted = Options(max_tokens=70, lookup="on")
    with Engine(pair, EngineOptions()) as engine:
        tickets = [engine.submit(prompt, wanted) for _ in range(2)]
        for ticket in tickets:
            responses = list(ticket)
            assert [token for response in responses for token in response.tokens] == text
            assert responses[-1].stats.copied.rounds > 0


def test_log_probabilities_come_with_copies(told: Tell) -> None:
    prompt, text = truth("llama", 24)
    told(prompt + text)
    pair = make_pair("llama", ScriptedDraft(draft_config(), prompt + text, lambda _: 5))
    done = run(pair, prompt, Script((3,), copies=(4, 0)), logprobs=2)
    assert ids_of(done) == text
    assert any(r.copied for r in done)
    for round_ in done:
        assert [p.token for p in round_.logprobs] == list(round_.tokens)
        assert all(p.top[0] == (p.token, p.logprob) for p in round_.logprobs)
