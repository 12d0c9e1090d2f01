"""Guided decoding: ids are those of plain guided decoding, and texts are what they have to be."""

import json
import random
from typing import Any

import mlx.core as mx
import pytest
from jsonschema import validate

from dflash_mlx import decode, guided
from dflash_mlx.drafts.dflash2 import DFlash2Draft
from dflash_mlx.engine import Engine
from dflash_mlx.errors import UnsupportedError
from dflash_mlx.generation import rounds, stream_generate
from dflash_mlx.guide import Guide
from dflash_mlx.kernels.choice import Kernels
from dflash_mlx.loading import Pair
from dflash_mlx.options import AUTO, Options
from dflash_mlx.sampling import Sampling
from dflash_mlx.session import Session
from dflash_mlx.stats import Round

from .families import ScriptedDraft, draft_config, make_pair, prompt_of, random_draft
from .guides import EOS, guided_ids, tokenizer
from .test_dflash2 import CONFIG as DFLASH2
from .tiny import tiny_pair

PROMPT = prompt_of(20)
DIGIT = {"type": "integer", "minimum": -9, "maximum": 99}
NAMES = {
    "type": "object",
    "properties": {
        "ab": {"type": "boolean"},
        "x": {"type": "string", "minLength": 6, "maxLength": 12},
        "many": {"type": "array", "items": DIGIT, "minItems": 3, "maxItems": 5},
    },
    "required": ["ab", "x", "many"],
    "additionalProperties": False,
}
SCHEMA = Guide.json_schema(NAMES)
LETTERS = Guide.regex("[a-z]{40}")
WARM = Sampling(temperature=1.0)


def pair_of(family: str, draft: Any) -> Pair:
    return make_pair(family, draft, [EOS], tokenizer())


def scripted(guide: Guide, accepted: int, family: str = "llama") -> tuple[Pair, list[int]]:
    """A pair whose draft is right in so many places of a block, and the right text."""
    truth = guided_ids(family, PROMPT, guide, 60)
    return pair_of(family, ScriptedDraft(draft_config(), PROMPT + truth, lambda _: accepted)), truth


def decoded(pair: Pair, guide: Guide, **options: Any) -> list[Round]:
    return list(rounds(pair, PROMPT, Options(max_tokens=60, guide=guide, **options)))


def ids_of(done: list[Round]) -> list[int]:
    return [token for round_ in done for token in round_.tokens]


# Ids


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "qwen3_5"])
@pytest.mark.parametrize("accepted", [0, 2, 7])
def test_ids_are_those_of_mlx_lm_under_the_same_masks(family: str, accepted: int) -> None:
    pair, truth = scripted(SCHEMA, accepted, family)
    done = decoded(pair, SCHEMA)
    assert ids_of(done) == truth
    assert done[-1].finish_reason == "stop"
    validate(json.loads(tokenizer().decode(truth)), NAMES)
    assert ids_of(decoded(pair, SCHEMA, speculate=False)) == truth


@pytest.mark.parametrize("accepted", range(8))
def test_every_acceptance(accepted: int) -> None:
    pair, truth = scripted(LETTERS, accepted)
    done = decoded(pair, LETTERS)
    assert ids_of(done) == truth
    # Blocks are narrower before the end of the text.
    assert {(r.drafted, r.accepted) for r in done[1:4]} == {(7, accepted)}


@pytest.mark.parametrize("block", [2, 5, 16, AUTO])
def test_blocks_of_any_width(block: Any) -> None:
    pair, truth = scripted(SCHEMA, 3)
    assert ids_of(decoded(pair, SCHEMA, block=block)) == truth


def test_drafts_of_both_kinds() -> None:
    truth = guided_ids("llama", PROMPT, SCHEMA, 60)
    second = DFlash2Draft(DFLASH2)
    second.prepare()
    for draft in (random_draft(draft_config()), second):
        pair = pair_of("llama", draft)
        assert ids_of(decoded(pair, SCHEMA)) == truth
        drawn = [ids_of(decoded(pair, SCHEMA, sampling=WARM, seed=s)) for s in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        for ids in drawn:
            validate(json.loads(tokenizer().decode(ids)), NAMES)


def test_compiled_rounds_decode_the_same() -> None:
    guide = Guide.regex("[a-c]{7}")
    pair, _ = scripted(guide, 1)
    runs = [
        decoded(pair, guide, compiled=c, block=2, sampling=WARM, seed=4, logprobs=1)
        for c in (True, False)
    ]
    assert ids_of(runs[0]) == ids_of(runs[1])
    for one, other in zip(*runs, strict=True):
        assert [x.logprob for x in one.logprobs] == pytest.approx(
            [x.logprob for x in other.logprobs], abs=1e-4
        )


def test_a_draft_that_only_says_what_is_forbidden_costs_no_more_than_plain_decoding() -> None:
    config = draft_config()
    draft = ScriptedDraft(config, [EOS] * 200, lambda _: 99)
    pair = pair_of("llama", draft)
    narrow = Guide.regex("[xyz]{30}")
    found = decoded(pair, narrow, sampling=Sampling(logit_bias=((EOS, 5.0),)))
    assert set(tokenizer().decode(ids_of(found))) <= set("xyz")


@pytest.mark.parametrize("second", [False, True])
def test_rounds_by_kernels_decode_the_same(second: bool) -> None:
    config = DFLASH2 if second else draft_config(block_size=4)
    draft = DFlash2Draft(config) if second else random_draft(config)
    draft.prepare()
    pair = pair_of("llama", draft)
    plain = [decoded(pair, SCHEMA, sampling=s, seed=1) for s in (Sampling(), WARM)]
    pair = pair_of("llama", draft)
    pair.kernels = Kernels("on")
    runs = [decoded(pair, SCHEMA, sampling=s, seed=1) for s in (Sampling(), WARM)]
    assert runs == plain
    assert pair.kernels.active and not pair.kernels.refused


# Forced tokens


def test_forced_tokens_are_drafts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a whole block is forced, the draft does not run, and there is one transfer."""
    guide, ran = Guide.choice(["abcdefghijklmnopqrstuvwxyz0123456789"]), []
    pair = pair_of("llama", random_draft(draft_config()))
    monkeypatch.setattr(guided.CandidateStep, "__call__", lambda *a: ran.append(a))
    done = decoded(pair, guide, block=6)
    assert tokenizer().decode(ids_of(done)) == "abcdefghijklmnopqrstuvwxyz0123456789"
    assert [r.accepted for r in done[1:-1]] == [5] * len(done[1:-1])
    assert not ran


def test_forced_tokens_come_before_those_of_the_draft() -> None:
    guide = Guide.regex("[a-z]{3}0123[a-z]{3}4567[a-z]{3}")
    truth = guided_ids("llama", PROMPT, guide, 60)
    for sampling in (Sampling(), WARM):
        pair = pair_of("llama", ScriptedDraft(draft_config(), PROMPT + truth, lambda _: 0))
        done = decoded(pair, guide, sampling=sampling)
        text = tokenizer().decode(ids_of(done))
        assert (text[3:7], text[10:14], len(text)) == ("0123", "4567", 17)
        if sampling.greedy:
            assert ids_of(done) == truth
        assert max(r.accepted for r in done) >= 4


# Random schemas


def schema_of(choose: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": choose.randint(-9, 9), "maximum": choose.randint(10, 99)},
        {"type": "string", "minLength": choose.randint(0, 2), "maxLength": choose.randint(3, 6)},
        {"enum": choose.sample(["a", "bc", 3, None, True], 3)},
        {"type": "string", "pattern": "^[a-f]{2,4}$"},
    ]
    if depth < 2 and choose.random() < 0.6:
        items = [schema_of(choose, depth + 1) for _ in range(choose.randint(1, 3))]
        names = choose.sample("abcdefgh", len(items))
        return {
            "type": "object",
            "properties": dict(zip(names, items, strict=True)),
            "required": names[: choose.randint(1, len(names))],
            "additionalProperties": False,
        }
    if depth < 2 and choose.random() < 0.3:
        return {"type": "array", "items": schema_of(choose, 2), "maxItems": 3}
    return choose.choice(kinds)


@pytest.mark.parametrize("seed", range(9))
def test_texts_of_a_random_target_are_valid(seed: int) -> None:
    choose = random.Random(seed)
    schema, pair = schema_of(choose), tiny_pair()
    for sampling in (Sampling(), Sampling(temperature=2, top_p=0.9, presence_penalty=1)):
        options = Options(
            max_tokens=300,
            guide=Guide.json_schema(schema, compact=choose.random() < 0.5),
            sampling=sampling,
            seed=seed,
        )
        done = list(stream_generate(pair, "abc", options))
        assert done[-1].finish_reason == "stop"
        validate(json.loads("".join(r.text for r in done)), schema)


# Ends


@pytest.mark.parametrize("speculate", [True, False])
def test_where_a_text_ends(speculate: bool) -> None:
    pair = pair_of("llama", random_draft(draft_config()))
    open_end, likely = Guide.regex("[ab]{3,}"), Sampling(logit_bias=((EOS, 100.0),))
    done = decoded(pair, open_end, speculate=speculate, sampling=likely)
    ids = ids_of(done)  # no earlier than the grammar allows
    assert len(tokenizer().decode(ids[:-1])) in (3, 4) and ids[-1] == EOS
    assert done[-1].finish_reason == "stop"
    done = decoded(pair, Guide.choice([""]), speculate=speculate)
    assert (ids_of(done), done[-1].finish_reason) == ([EOS], "stop")
    done = decoded(pair, Guide.choice(["a"]), speculate=speculate)
    assert (tokenizer().decode(ids_of(done)), done[-1].finish_reason) == ("a", "stop")


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 13])
def test_max_tokens_inside_a_block(count: int) -> None:
    pair, truth = scripted(LETTERS, 6)
    done = list(rounds(pair, PROMPT, Options(max_tokens=count, guide=LETTERS)))
    assert (ids_of(done), done[-1].finish_reason) == (truth[:count], "length")


def test_the_limit_and_the_end_at_once() -> None:
    guide = Guide.regex("[a-z]{10}")
    pair, truth = scripted(guide, 6)
    for count in (len(truth), len(truth) - 1):
        (*_, last) = rounds(pair, PROMPT, Options(max_tokens=count, guide=guide))
        assert last.finish_reason == ("stop" if count == len(truth) else "length")


def test_stop_texts_penalties_and_bias_go_together_with_a_guide() -> None:
    pair = pair_of("llama", random_draft(draft_config()))
    (b,), (c,) = tokenizer().encode("b"), tokenizer().encode("c")
    bias = ((b, 3.0), (c, 3.0), (EOS, 9.0))

    def text(stop: tuple[str, ...], speculate: bool, penalty: float = 0.5) -> str:
        sampling = Sampling(frequency_penalty=penalty, penalty_context=40, logit_bias=bias)
        options = Options(guide=LETTERS, sampling=sampling, speculate=speculate, stop=stop)
        done = list(stream_generate(pair, PROMPT, options))
        assert done[-1].finish_reason == "stop"
        return "".join(r.text for r in done)

    whole = text((), True)
    assert whole == text((), False) != text((), True, 0.0)
    assert len(whole) == 40
    assert text((whole[20:23],), True) == text((whole[20:23],), False) == whole[:20]


def test_a_consumer_that_leaves_and_comes_back() -> None:
    pair, truth = scripted(LETTERS, 4)
    session, options = Session(pair.target, pair.draft), Options(max_tokens=60, guide=LETTERS)
    for round_ in rounds(pair, PROMPT, options, session):
        if round_.accepted:
            break
    again = list(rounds(pair, PROMPT, options, session))
    assert ids_of(again) == truth
    onward = Options(max_tokens=9)
    fresh = list(rounds(pair, PROMPT + truth, onward))
    assert ids_of(list(rounds(pair, PROMPT + truth, onward, session))) == ids_of(fresh)


# Figures


def test_log_probabilities_are_those_of_plain_guided_decoding() -> None:
    pair, _ = scripted(SCHEMA, 3)
    runs = [
        [one for r in decoded(pair, SCHEMA, logprobs=3, speculate=s) for one in r.logprobs]
        for s in (True, False)
    ]
    for one, other in zip(*runs, strict=True):
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=2e-5)
        assert [v for _, v in one.top] == pytest.approx([v for _, v in other.top], abs=2e-5)
    assert any(len(one.top) == 1 and one.logprob == 0 for one in runs[0])  # forced


def test_two_transfers_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    read, evaluate = guided.read, mx.eval
    monkeypatch.setattr(guided, "read", lambda p: seen.append("round") or read(p))
    monkeypatch.setattr(guided.mx, "eval", lambda *a: seen.append("candidates") or evaluate(*a))
    pair, _ = scripted(LETTERS, 3)
    generation = rounds(pair, PROMPT, Options(max_tokens=30, guide=LETTERS))
    next(generation)  # the prefill evaluates, too
    seen.clear()
    done = list(generation)
    assert seen == ["candidates", "round"] * len(done)
    assert decode.read is read


def test_requests_of_an_engine_get_what_they_would_alone() -> None:
    """Guided ones run alone; log-probabilities of different numbers travel in one round."""
    pair = pair_of("llama", random_draft(draft_config()))
    wanted = [
        Options(max_tokens=60, guide=SCHEMA, logprobs=1),
        Options(max_tokens=12, logprobs=3),
        Options(max_tokens=12),
        Options(max_tokens=12, logprobs=0, sampling=WARM, seed=1),
        Options(max_tokens=60, guide=LETTERS, sampling=WARM, seed=2),
        Options(max_tokens=12, logprobs=2, speculate=False),
        Options(max_tokens=12, logprobs=1, speculate=False),
    ]
    with Engine(pair) as engine:
        tickets = [engine.submit(PROMPT, options) for options in wanted]
        found = [list(ticket) for ticket in tickets]
    for responses, options in zip(found, wanted, strict=True):
        own = list(stream_generate(pair, PROMPT, options))
        assert [t for r in responses for t in r.tokens] == [t for r in own for t in r.tokens]
        ours, theirs = ([x for r in rs for x in r.logprobs] for rs in (responses, own))
        for one, other in zip(ours, theirs, strict=True):
            assert (one.token, len(one.top)) == (other.token, len(other.top))
            assert one.logprob == pytest.approx(other.logprob, abs=2e-5)
        assert bool(ours) == (options.logprobs is not None)


def test_a_guide_needs_a_fitting_tokenizer() -> None:
    class Slow:
        is_fast = False

    pair = make_pair("llama", None, [EOS], Slow())
    with pytest.raises(UnsupportedError, match="guides need a tokenizer"):
        decoded(pair, LETTERS)
