"""Where a generation ends and what it leaves behind: the cases around the round loop."""

import threading
from collections.abc import Sequence
from typing import Any, Literal

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_logits_processors

from dflash_mlx.errors import UsageError
from dflash_mlx.generation import generate, rounds, stream_generate
from dflash_mlx.loading import Pair
from dflash_mlx.options import AUTO, Options
from dflash_mlx.sampling import Sampling
from dflash_mlx.session import Session
from dflash_mlx.stats import Round, Stats

from .choosers import priced
from .families import (
    FAMILIES,
    VOCAB,
    ScriptedDraft,
    draft_config,
    language_model,
    make_pair,
    plain_ids,
    prompt_of,
    random_draft,
)
from .tiny import letters, tiny_pair
from .tiny import options as letter_options

PROMPT = prompt_of(20)


def scripted(family: str = "llama", accepted: int = 5, eos_ids: Sequence[int] = ()) -> Pair:
    truth = PROMPT + plain_ids(family, PROMPT, 60)
    draft = ScriptedDraft(draft_config(), truth, lambda start: accepted)
    return make_pair(family, draft, eos_ids)


def ids_of(done: Sequence[Round]) -> list[int]:
    return [token for round_ in done for token in round_.tokens]


# Ends


@pytest.mark.parametrize("count", range(1, 20))
@pytest.mark.parametrize("speculate", [True, False])
def test_max_tokens_anywhere_in_a_block(count: int, speculate: bool) -> None:
    options = Options(max_tokens=count, speculate=speculate)
    done = list(rounds(scripted(), PROMPT, options))
    assert ids_of(done) == plain_ids("llama", PROMPT, count)
    assert [r.finish_reason for r in done] == [None] * (len(done) - 1) + ["length"]


@pytest.mark.parametrize("place", range(14))
@pytest.mark.parametrize("compiled", [True, False])
def test_eos_anywhere_in_a_block(place: int, compiled: bool) -> None:
    text = plain_ids("llama", PROMPT, 60)
    eos = text[place]
    done = list(rounds(scripted(eos_ids=[eos]), PROMPT, Options(compiled=compiled)))
    assert ids_of(done) == text[: text.index(eos) + 1]
    assert done[-1].finish_reason == "stop"


def test_no_tokens_wanted() -> None:
    assert list(rounds(scripted(), PROMPT, Options(max_tokens=0))) == [Round((), 0, 0, "length")]
    (response,) = stream_generate(tiny_pair(), "abc", Options(max_tokens=0))
    assert (response.text, response.tokens, response.finish_reason) == ("", (), "length")


def test_the_context_ends_the_text() -> None:
    pair = tiny_pair(max_context=30)
    *_, last = stream_generate(pair, "x" * 20, letter_options(50))
    assert last.finish_reason == "length"
    assert last.generation_tokens == 10


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ("", "the prompt is empty"),
        ([1] * 5000, "the prompt has 5000 tokens, the model's context holds 2048"),
        ([1, 300], "outside the vocabulary"),
        ([-1], "outside the vocabulary"),
    ],
)
def test_prompts_that_are_refused(prompt: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(stream_generate(tiny_pair(), prompt))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"block": 1}, "block is 1, expected 2 to 64"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
        ({"stop": ("",)}, "a stop text is empty"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Options(**options)


# Text


def test_text_is_the_ids_decoded_without_eos() -> None:
    pair = tiny_pair()
    responses = list(stream_generate(pair, "hello", letter_options(40)))
    text = "".join(r.text for r in responses)
    ids = [t for r in responses for t in r.tokens]
    assert len(ids) == 40
    assert pair.tokenizer.decode(ids) == text
    pair.eos_ids = frozenset([ids[7]])
    ended = list(stream_generate(pair, "hello", letter_options(40)))
    cut = ids[: ids.index(ids[7]) + 1]
    assert [t for r in ended for t in r.tokens] == cut
    assert "".join(r.text for r in ended) == pair.tokenizer.decode(cut[:-1])
    assert ended[-1].finish_reason == "stop"


@pytest.mark.parametrize("length", range(1, 8))
@pytest.mark.parametrize("begin", range(0, 12, 3))
def test_stop_texts_across_rounds(begin: int, length: int) -> None:
    pair = tiny_pair()
    whole = generate(pair, "hello", letter_options(40))
    stop = whole[begin : begin + length]
    responses = list(stream_generate(pair, "hello", letter_options(40, stop=(stop, "###"))))
    assert "".join(r.text for r in responses) == whole[: whole.index(stop)]
    assert responses[-1].finish_reason == "stop"
    # The token that completed the stop text is the last one reported and counted.
    ids = [t for r in responses for t in r.tokens]
    assert pair.tokenizer.decode(ids).endswith(stop)
    assert responses[-1].stats.generated_tokens == len(ids)


def test_text_held_back_for_a_stop_text_comes_out_at_the_end() -> None:
    pair = tiny_pair()
    whole = generate(pair, "hello", letter_options(20))
    options = letter_options(20, stop=(whole[-3:] + "#",))
    assert generate(pair, "hello", options) == whole


# Sessions


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("compiled", [False, True])
def test_leaving_anywhere_leaves_a_session_that_goes_on_exactly(
    family: str, compiled: bool
) -> None:
    """The consumer goes after k rounds; the text so far and a new question are then a prompt."""
    question = prompt_of(6, seed=9)
    options = Options(max_tokens=30, compiled=compiled)
    for left_after in (1, 2, 4):
        pair = scripted(family)
        session = Session(pair.target, pair.draft)
        source = rounds(pair, PROMPT, options, session)
        seen = ids_of([next(source) for _ in range(left_after)])
        source.close()  # type: ignore[attr-defined]
        prompt = PROMPT + seen + question
        pair.draft._truth = mx.array([*prompt, *plain_ids(family, prompt, 30), *[0] * 64])  # type: ignore[union-attr]
        pair.steps.clear()
        stats = Stats()
        done = list(rounds(pair, prompt, options, session, stats))
        assert ids_of(done) == plain_ids(family, prompt, 30)
        assert stats.cached_tokens == len(PROMPT) + len(seen) - 1
        assert all(r.accepted == 5 for r in done[1:-1]), "the draft's context lost its place"


@pytest.mark.parametrize("family", ["llama", "llama-sliding", "qwen3_5"])
def test_a_rewritten_past_is_computed_again(family: str) -> None:
    pair = make_pair(family, random_draft(draft_config()))
    session = Session(pair.target, pair.draft)
    list(rounds(pair, PROMPT, Options(max_tokens=40), session))
    for kept in (19, 10, 1, 0):
        prompt = PROMPT[:kept] + prompt_of(12, seed=kept + 1)
        stats = Stats()
        done = list(rounds(pair, prompt, Options(max_tokens=20), session, stats))
        assert ids_of(done) == plain_ids(family, prompt, 20)
        assert stats.cached_tokens <= kept
    # The same prompt once more: all but its last token is there. A recurrent layer's is not.
    list(rounds(pair, prompt, Options(max_tokens=5), session, stats))
    assert stats.cached_tokens == (0 if family == "qwen3_5" else len(prompt) - 1)


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_plain_rounds_and_drafted_rounds_take_turns_in_a_session(family: str) -> None:
    pair = scripted(family)
    session = Session(pair.target, pair.draft)
    text = plain_ids(family, PROMPT, 60)
    for count, speculate in ((10, True), (20, False), (30, True), (40, False), (50, True)):
        prompt = PROMPT + text[: count - 10]
        options = Options(max_tokens=10, speculate=speculate)
        assert ids_of(list(rounds(pair, prompt, options, session))) == text[count - 10 : count]


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_an_interrupted_prefill_is_made_good(family: str) -> None:
    pair = make_pair(family, random_draft(draft_config()))
    session = Session(pair.target, pair.draft)
    prompt = prompt_of(60)

    def interrupt(done: int, _: int) -> None:
        if done >= 30:
            raise KeyboardInterrupt

    options = Options(max_tokens=10, prefill_chunk=10)
    with pytest.raises(KeyboardInterrupt):
        list(rounds(pair, prompt, options, session, progress=interrupt))
    stats = Stats()
    done = list(rounds(pair, prompt, options, session, stats))
    assert ids_of(done) == plain_ids(family, prompt, 10)
    assert stats.cached_tokens == 30


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_interleaved_generations_do_not_disturb_each_other(family: str) -> None:
    pair = scripted(family, accepted=3)
    alone = ids_of(list(rounds(pair, PROMPT, Options(max_tokens=40))))
    sources = [rounds(pair, PROMPT, Options(max_tokens=40)) for _ in range(2)]
    texts: list[list[int]] = [[], []]
    for a, b in zip(*sources, strict=True):
        texts[0] += a.tokens
        texts[1] += b.tokens
    assert texts == [alone, alone]


@pytest.mark.parametrize("compiled", [False, True])
def test_two_threads_with_two_models_and_with_one(compiled: bool) -> None:
    families = ("llama", "qwen3", "qwen3_5", "qwen3_next")
    pairs = [make_pair(family, random_draft(draft_config())) for family in families]
    pairs.append(pairs[2])  # one model in two threads
    texts: dict[int, list[int]] = {}

    def work(index: int) -> None:
        done = rounds(pairs[index], PROMPT, Options(max_tokens=40, compiled=compiled))
        texts[index] = ids_of(list(done))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pairs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, family in enumerate((*families, families[2])):
        assert texts[index] == plain_ids(family, PROMPT, 40)


# Sampling


def sampled(seed: int | None, compiled: bool, speculate: bool = True) -> list[int]:
    pair = make_pair("llama", random_draft(draft_config()))
    options = Options(
        max_tokens=40,
        sampling=Sampling(temperature=1.2, top_p=0.9),
        seed=seed,
        compiled=compiled,
        speculate=speculate,
    )
    return ids_of(list(rounds(pair, PROMPT, options)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("speculate", [False, True])
def test_a_seed_reproduces_a_run(compiled: bool, speculate: bool) -> None:
    runs = [sampled(seed, compiled, speculate) for seed in (5, 5, 6, None, None)]
    assert runs[0] == runs[1]
    assert len({tuple(run) for run in runs[1:]}) == 4


def test_sampling_leaves_the_global_random_state_alone() -> None:
    pair = make_pair("llama", random_draft(draft_config()))
    mx.random.seed(1)
    first = mx.random.uniform(shape=(3,)).tolist()
    mx.random.seed(1)
    list(rounds(pair, PROMPT, Options(max_tokens=9, sampling=Sampling(temperature=1.0))))
    assert mx.random.uniform(shape=(3,)).tolist() == first


PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.5},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.8, "logit_bias": ((5, 1.0), (9, -2.0))},
]


@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("accepted", [None, 0, 2, 7])
def test_penalties_inside_a_block(
    penalties: dict[str, Any], compiled: bool, accepted: int | None
) -> None:
    """As mlx-lm applies them, one token at a time, whatever was accepted; None is plain."""
    arguments = {**penalties, "logit_bias": dict(penalties.get("logit_bias", ()))}
    steps = generate_step(
        mx.array(PROMPT),
        language_model("llama"),
        max_tokens=60,
        logits_processors=make_logits_processors(**arguments),
    )
    text = [int(token) for token, _ in steps]
    draft = None
    if accepted is not None:
        draft = ScriptedDraft(draft_config(), PROMPT + text, lambda start: accepted)
    options = Options(max_tokens=60, sampling=Sampling(**penalties), compiled=compiled)
    done = list(rounds(make_pair("llama", draft), PROMPT, options))
    assert ids_of(done) == text
    # The script's logits are processed too, but 20 against 0 leaves its order as it is.
    assert {r.accepted for r in done[1:-1]} == {accepted or 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("penalty", "block", "vocabulary"),
    [(0.0, None, None), (1.5, None, None), (1.5, AUTO, None), (0.0, None, 32)],
)
def test_sampled_sequences_have_the_targets_probabilities(
    penalty: float, block: Literal["auto"] | None, vocabulary: int | None
) -> None:
    """All pairs of the second and third token, against probabilities computed directly."""
    import numpy as np

    sampling = Sampling(temperature=1.0, top_k=4, presence_penalty=penalty)
    draft = random_draft(draft_config(block_size=4, draft_vocab_size=vocabulary))
    pair = priced(make_pair("llama", draft), 0.01, 0.0)
    model, runs = language_model("llama"), 1000
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(runs):
        options = Options(max_tokens=5, sampling=sampling, seed=seed, block=block)
        ids = tuple(ids_of(list(rounds(pair, PROMPT, options)))[:3])
        counts[ids] = counts.get(ids, 0) + 1

    def probabilities(ids: list[int]) -> Any:
        logits = model(mx.array([ids]))[0, -1].tolist()
        row = np.array(logits)
        row[sorted(set(ids[-20:]))] -= penalty
        row = np.where(row >= np.sort(row)[-4], row, -np.inf)
        exp = np.exp(row - row.max())
        return exp / exp.sum()

    expected = {}
    for a in np.flatnonzero(first := probabilities(PROMPT)):
        for b in np.flatnonzero(second := probabilities([*PROMPT, int(a)])):
            third = probabilities([*PROMPT, int(a), int(b)])
            for c in np.flatnonzero(third):
                expected[int(a), int(b), int(c)] = first[a] * second[b] * third[c] * runs
    assert set(counts) <= set(expected)
    frequent = [ids for ids, n in expected.items() if n >= 5]
    statistic = sum((counts.get(i, 0) - expected[i]) ** 2 / expected[i] for i in frequent)
    assert len(frequent) > 15
    assert (statistic - len(frequent)) / (2 * len(frequent)) ** 0.5 < 5


# What comes back


def test_statistics_follow_from_the_rounds() -> None:
    pair = tiny_pair()
    responses = list(stream_generate(pair, "hello", letter_options(40)))
    stats = responses[-1].stats
    tokens = [len(r.tokens) for r in responses if r.tokens]
    assert stats.generated_tokens == sum(tokens) == 40
    assert stats.rounds == len(tokens) - 1
    assert stats.tokens_per_round == pytest.approx(sum(tokens[1:]) / (len(tokens) - 1))
    assert stats.accepted == sum(r.accepted for r in responses)
    assert sum(stats.acceptance_histogram) == stats.rounds
    assert stats.drafted == 3 * stats.rounds
    assert stats.prompt_tokens == 5
    assert stats.ttft_s > 0
    assert set(letters(pair.tokenizer)) >= {t for r in responses for t in r.tokens}
    assert pair.target.vocab_size > VOCAB  # ids of this pair are not those of the families
