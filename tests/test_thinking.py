"""Guides that begin behind what the model thinks."""

import json
import random
from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from jsonschema import validate
from mlx_lm.models.cache import make_prompt_cache

from dflash_mlx.conversation import Conversation
from dflash_mlx.errors import UnsupportedError, UsageError
from dflash_mlx.generation import rounds
from dflash_mlx.guide import Guide
from dflash_mlx.options import Options
from dflash_mlx.sampling import Sampling
from dflash_mlx.thinking import Thinking, ThinkingMatcher

from .families import VOCAB, ScriptedDraft, draft_config, language_model, prompt_of
from .guides import EOS, ids_allowed, tokenizer, words
from .test_guided import NAMES, SCHEMA, ids_of, pair_of
from .tiny import OPENING, PLAIN, tiny_pair

PROMPT = prompt_of(20)
BREAK = 62
COUNT = 90


@cache
def markers(opened: bool) -> Thinking:
    """The end marker is what the model says by itself after a while."""
    thoughts = continued([token for token in range(VOCAB) if token != EOS], 60)
    news = list(dict.fromkeys(thoughts))
    end = next(token for token in news[4:] if token != BREAK)
    begin = next(token for token in range(50, BREAK) if token not in (EOS, end))
    return Thinking(begin, end, (BREAK,), opened)


def matcher(opened: bool) -> ThinkingMatcher:
    return ThinkingMatcher(SCHEMA, words(), markers(opened), frozenset([EOS]))


def masked_ids(opened: bool) -> list[int]:
    """Greedy continuation by mlx-lm's own model and cache, of tokens that are allowed."""
    return continued(matcher(opened), COUNT)


def continued(allowed: ThinkingMatcher | list[int], count: int) -> list[int]:
    model = language_model("llama")
    cache_ = make_prompt_cache(model)
    logits = model(mx.array([PROMPT]), cache=cache_)
    ids: list[int] = []
    while len(ids) < count:
        may = allowed if isinstance(allowed, list) else ids_allowed(allowed)
        ids.append(may[int(np.array(logits[0, -1])[may].argmax())])
        if isinstance(allowed, ThinkingMatcher):
            allowed.take(ids[-1])
            if allowed.ended:
                break
        logits = model(mx.array([ids[-1:]]), cache=cache_)
    return ids


def test_what_may_come_at_each_stage() -> None:
    thinking, now = markers(False), matcher(False)
    brace = tokenizer().encode("{")[0]
    start = ids_allowed(now)
    assert thinking.begin in start and brace in start and thinking.end not in start
    assert now.forced() == []
    now.take(thinking.begin)
    assert set(range(64)) - set(ids_allowed(now)) == {EOS}
    now.take(next(token for token in range(20) if token != thinking.end))
    now.take(thinking.end)
    behind = ids_allowed(now)
    assert BREAK in behind and brace in behind and thinking.begin not in behind
    now.take(BREAK)
    now.take(tokenizer().encode('{"')[0])
    assert BREAK not in ids_allowed(now)
    assert now.forced() == tokenizer().encode("ab")


@pytest.mark.parametrize("opened", [False, True])
def test_going_back_over_all_stages(opened: bool) -> None:
    """Behind any walk forth and back it stands where one stands that took the rest at once."""
    draw, ids = random.Random(5), masked_ids(opened)
    now, at = matcher(opened), 0
    for _ in range(40):
        forth = min(draw.randint(0, 25), len(ids) - at)
        for token in ids[at : at + forth]:
            now.take(token)
        back = draw.randint(0, at + forth)
        now.back(back)
        at += forth - back
        fresh = matcher(opened)
        for token in ids[:at]:
            fresh.take(token)
        assert ids_allowed(now) == ids_allowed(fresh)
        assert now.forced() == fresh.forced()


@pytest.mark.parametrize("accepted", [0, 3, 7])
@pytest.mark.parametrize("opened", [False, True])
def test_ids_are_those_of_mlx_lm_under_the_same_masks(opened: bool, accepted: int) -> None:
    truth, thinking = masked_ids(opened), markers(opened)
    if opened:
        assert 3 < truth.index(thinking.end) < 40
    answer = truth[truth.index(thinking.end) + 1 :] if opened else truth
    validate(json.loads(tokenizer().decode([t for t in answer if t != BREAK])), NAMES)
    pair = pair_of("llama", ScriptedDraft(draft_config(), PROMPT + truth, lambda _: accepted))
    for speculate in (True, False):
        options = Options(max_tokens=COUNT, guide=SCHEMA, thinking=thinking, speculate=speculate)
        done = list(rounds(pair, PROMPT, options))
        assert ids_of(done) == truth
        assert done[-1].finish_reason == "stop"


def test_sampled_thoughts_end_in_an_answer() -> None:
    thinking = markers(True)
    truth = masked_ids(True)
    pair = pair_of("llama", ScriptedDraft(draft_config(), PROMPT + truth, lambda _: 3))
    ended = 0
    for seed in range(6):
        warm = Sampling(temperature=1.0, logit_bias=((thinking.end, 4.0),))
        options = Options(300, sampling=warm, seed=seed, guide=SCHEMA, thinking=thinking)
        done = list(rounds(pair, PROMPT, options))
        ids = ids_of(done)
        if done[-1].finish_reason == "stop":
            ended += 1
            answer = [t for t in ids[ids.index(thinking.end) + 1 :] if t != BREAK]
            validate(json.loads(tokenizer().decode(answer)), NAMES)
    assert ended > 3


@pytest.mark.parametrize(
    ("template", "think"),
    [(OPENING, True), (PLAIN.replace("<|assistant|>{% endif", "<think>{% endif"), None)],
)
def test_a_conversation_thinks_before_its_answer(template: str, think: bool | None) -> None:
    pair = tiny_pair(template, thinking=True)
    conversation = Conversation(pair, think=think)
    schema = {"enum": ["red", "green"]}
    # Letters alone, and the end of the thinking after a while.
    bias = ((pair.tokenizer.think_end_id, 3.0),)
    options = Options(
        400,
        sampling=Sampling(temperature=1.0, logit_bias=bias),
        seed=3,
        guide=Guide.json_schema(schema),
    )
    pieces = list(conversation.ask("hello", options))
    assert "".join(p.text for p in pieces if p.thinking)
    assert json.loads("".join(p.text for p in pieces if not p.thinking)) in schema["enum"]
    assert conversation.messages[-1]["content"] in ('"red"', '"green"')


def test_a_guided_answer_of_gpt_oss_begins_in_its_last_channel() -> None:
    pair = tiny_pair()
    special = {"additional_special_tokens": ["<|channel|>", "<|message|>"]}
    pair.tokenizer._tokenizer.add_special_tokens(special)
    conversation = Conversation(pair)
    options = Options(40, guide=Guide.json_schema({"enum": ["red", "green"]}))
    text = "".join(piece.text for piece in conversation.ask("hello", options))
    assert json.loads(text) in ("red", "green")
    session = conversation._memory._session
    assert "<|channel|>final<|message|>" in pair.tokenizer.decode(session.ids)


def test_markers_of_several_tokens_are_refused() -> None:
    class Words:
        think_start_tokens, think_end_tokens, think_end = [1], [2, 3], "</think>"

    with pytest.raises(UnsupportedError, match="turn thinking off"):
        Thinking.of(Words(), opened=True)


def test_thinking_without_a_guide_is_refused() -> None:
    with pytest.raises(UsageError, match="without the guide"):
        Options(thinking=markers(True))


def test_options_come_back_from_json() -> None:
    options = Options(guide=SCHEMA, thinking=markers(True), stop=("a",), sampling=Sampling(0.5))
    assert Options.from_dict(json.loads(json.dumps(options.as_dict()))) == options
