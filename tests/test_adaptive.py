"""Rounds of changing width: the text is the target's own, whatever is verified and kept."""

import threading
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_logits_processors

from dflash_mlx.config import FULL, SLIDING, DFlash2
from dflash_mlx.drafts import draft_for
from dflash_mlx.generation import rounds
from dflash_mlx.kernels.chip import Chip
from dflash_mlx.kernels.choice import Kernels
from dflash_mlx.loading import Pair
from dflash_mlx.options import AUTO, Options
from dflash_mlx.sampling import Sampling
from dflash_mlx.session import Session
from dflash_mlx.stats import Round, Stats

from .choosers import Script, priced, scripted
from .families import (
    FAMILIES,
    VOCAB,
    WINDOW,
    ScriptedDraft,
    draft_config,
    language_model,
    make_pair,
    plain_ids,
    prompt_of,
    random_draft,
)
from .test_lossless import ids_of, in_turn, truth

COUNT = 48
PROMPT = prompt_of(20)
COMPILED = pytest.mark.parametrize("compiled", [False, True])
# Up and down, with rests of 3 tokens between.
CHANGING = (8, 1, 2, 0, 3, 5, 0, 0, 4, 8, 7, 6, 0, 1, 1)


def run(pair: Pair, prompt: Sequence[int], widths: Sequence[int], **options: Any) -> list[Round]:
    script = Script(widths)
    with scripted(script):
        return list(
            rounds(pair, prompt, Options(**{"max_tokens": COUNT, "block": AUTO, **options}))
        )


def right_up_to(family: str, length: int, accepted: int, block: int = 8, count: int = COUNT) -> Any:
    """A prompt, its text, and a pair whose draft is right for that many tokens of each block."""
    prompt, text = truth(family, length, count)
    config = draft_config(block_size=block)
    return prompt, text, make_pair(family, ScriptedDraft(config, prompt + text, lambda _: accepted))


# Every width with every acceptance; the prompt lengths go through 1..36 along the way.
CELLS = [(width, accepted) for width in range(1, 9) for accepted in range(8)]


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_every_width_with_every_acceptance(family: str) -> None:
    for index, (width, accepted) in enumerate(CELLS):
        length = 1 + index % 36
        prompt, text, pair = right_up_to(family, length, accepted, count=20)
        done = run(pair, prompt, [width], max_tokens=20)
        where = f"width {width}, right {accepted}, prompt {length}"
        assert ids_of(done) == text, where
        left = 19  # of which no more is verified than is wanted
        for round_ in done[1:-1]:
            verified = min(width, left)
            assert round_.drafted == verified - 1, where
            assert round_.accepted == min(accepted, verified - 1), where
            left -= len(round_.tokens)


@pytest.mark.parametrize("family", FAMILIES)
@COMPILED
def test_changing_widths_and_rests(family: str, compiled: bool) -> None:
    """Every acceptance comes up; behind a rest the context is where it was never left."""
    prompt, text = truth(family, 24)
    draft = ScriptedDraft(draft_config(), prompt + text, in_turn(24, 8))
    script = Script(CHANGING)
    with scripted(script):
        options = Options(max_tokens=COUNT, block=AUTO, compiled=compiled)
        done = list(rounds(make_pair(family, draft), prompt, options))
    assert ids_of(done) == text
    assert len({verified for verified, _ in script.seen}) > 3


@pytest.mark.parametrize("family", ["llama-sliding", "qwen3_5", "gemma4"])
@COMPILED
def test_the_context_is_exact(family: str, compiled: bool) -> None:
    """A draft is worth what its context is: blocks are those of rounds of one width."""
    prompt, text = truth(family, 24)
    config = draft_config(
        num_layers=3,
        layer_types=(FULL, SLIDING, SLIDING),
        causal=(False, True, False),
        sliding_window=WINDOW,
    )

    def certainty_of(widths: Sequence[int]) -> dict[int, list[float]]:
        script = Script(widths)
        with scripted(script):
            options = Options(max_tokens=COUNT, block=AUTO, compiled=compiled)
            done = list(rounds(make_pair(family, random_draft(config)), prompt, options))
        assert ids_of(done) == text
        # Where each block stood: rests take 3 tokens, rounds what they brought.
        brought, places, at = iter(done[1:]), {}, 1
        for found, width in zip(script.certainty, widths * COUNT, strict=False):
            places[at] = found
            steps = 3 if width == 0 else 1
            at += sum(len(next(brought, Round((), 0, 0)).tokens) for _ in range(steps))
        return places

    wanted, found = certainty_of([1]), certainty_of(CHANGING)
    common = sorted(wanted.keys() & found.keys())
    assert len(common) > 10
    for place in common:
        assert np.allclose(wanted[place], found[place], atol=1e-4), place


@pytest.mark.parametrize("family", ["llama-sliding", "qwen3_5"])
def test_long_text(family: str) -> None:
    """Far beyond the windows and several steps of slots."""
    prompt, text = truth(family, 24, 300)
    draft = ScriptedDraft(draft_config(), prompt + text, in_turn(24, 8))
    pair = make_pair(family, draft)
    assert ids_of(run(pair, prompt, CHANGING, max_tokens=300, compiled=True)) == text


@pytest.mark.parametrize("count", range(1, 16))
@pytest.mark.parametrize("widths", [(8,), (3, 0)])
def test_max_tokens_anywhere(count: int, widths: Sequence[int]) -> None:
    _, text, pair = right_up_to("llama", 24, 5)
    prompt, _ = truth("llama", 24)
    done = run(pair, prompt, widths, max_tokens=count)
    assert ids_of(done) == text[:count]
    assert [r.finish_reason for r in done] == [None] * (len(done) - 1) + ["length"]
    # What is not wanted is not verified.
    assert all(r.drafted < 8 for r in done)


@pytest.mark.parametrize("family", ["llama-sliding", "qwen3_5"])
@COMPILED
def test_end_of_text_anywhere(family: str, compiled: bool) -> None:
    """Wherever the text ends, the conversation goes on as if never stopped."""
    prompt, text = truth(family, 24)
    first = {token: text.index(token) for token in reversed(text)}
    for place in sorted(first.values())[1:6]:
        draft = ScriptedDraft(draft_config(), prompt + text, lambda _: 7)
        pair = make_pair(family, draft, eos_ids=[text[place]])
        session = Session(pair.target, pair.draft)
        script = Script((4, 0, 8))
        options = Options(max_tokens=COUNT, block=AUTO, compiled=compiled)
        with scripted(script):
            done = list(rounds(pair, prompt, options, session))
            assert ids_of(done) == text[: place + 1]
            assert done[-1].finish_reason == "stop"
            more = make_pair(family, draft)
            later = rounds(more, prompt + text[: place + 3], options, session)
            assert ids_of(list(later))[:12] == text[place + 3 : place + 15]


@pytest.mark.parametrize("family", ["llama-sliding", "qwen3_5"])
@COMPILED
def test_leaving_anywhere(family: str, compiled: bool) -> None:
    """The consumer goes after k rounds, a rest among them; nothing has to be computed again."""
    question = prompt_of(6, seed=9)
    for left_after in (1, 2, 3, 5, 6):
        truth_ = PROMPT + plain_ids(family, PROMPT, 60)
        draft = ScriptedDraft(draft_config(), truth_, lambda _: 5)
        pair = make_pair(family, draft)
        session = Session(pair.target, pair.draft)
        options = Options(max_tokens=30, block=AUTO, compiled=compiled)
        with scripted(Script((3, 0, 8))):
            source = rounds(pair, PROMPT, options, session)
            seen = ids_of([next(source) for _ in range(left_after)])
            source.close()  # type: ignore[attr-defined]
            prompt = PROMPT + seen + question
            draft._truth = mx.array([*prompt, *plain_ids(family, prompt, 30), *[0] * 64])
            pair.steps.clear()
            stats = Stats()
            done = list(rounds(pair, prompt, options, session, stats))
        assert ids_of(done) == plain_ids(family, prompt, 30)
        # A recurrent layer looks back into its last pass alone; a token issued ahead is one.
        assert stats.cached_tokens in (0, len(PROMPT) + len(seen) - 1)
        assert stats.cached_tokens or (family == "qwen3_5" and left_after > 2)


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_kinds_of_rounds_take_turns_in_a_session(family: str) -> None:
    truth_ = PROMPT + plain_ids(family, PROMPT, 80)
    pair = make_pair(family, ScriptedDraft(draft_config(), truth_, lambda _: 5))
    session = Session(pair.target, pair.draft)
    ways: list[dict[str, Any]] = [{"block": AUTO}, {"speculate": False}, {}, {"block": 4}]
    for index in range(8):
        done = len(PROMPT) + 10 * index
        with scripted(Script(CHANGING)):
            found = rounds(pair, truth_[:done], Options(max_tokens=10, **ways[index % 4]), session)
            assert ids_of(list(found)) == truth_[done : done + 10], index


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_interleaved_generations(family: str) -> None:
    pairs = [right_up_to(family, 24, 3) for _ in range(1)]
    prompt, text, pair = pairs[0]
    options = Options(max_tokens=40, block=AUTO)
    with scripted(Script((3, 1, 0, 8, 2))):
        sources = [rounds(pair, prompt, options) for _ in range(3)]
        texts: list[list[int]] = [[], [], []]
        left = set(range(3))
        while left:
            for index in sorted(left):
                round_ = next(sources[index], None)
                if round_ is None:
                    left.discard(index)
                else:
                    texts[index] += round_.tokens
    assert texts == [text[:40]] * 3


def test_threads_share_a_pair_and_what_it_learns() -> None:
    pair = priced(make_pair("llama", random_draft(draft_config())))
    wanted = plain_ids("llama", PROMPT, 40)
    texts: dict[int, list[int]] = {}

    def work(index: int) -> None:
        done = rounds(pair, PROMPT, Options(max_tokens=40, block=AUTO))
        texts[index] = ids_of(list(done))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == dict.fromkeys(range(3), wanted)


PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.8, "logit_bias": ((5, 1.0), (9, -2.0))},
]


@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
@COMPILED
def test_penalties(penalties: dict[str, Any], compiled: bool) -> None:
    """As mlx-lm applies them, one token at a time, in every width and in rests."""
    arguments = {**penalties, "logit_bias": dict(penalties.get("logit_bias", ()))}
    steps = generate_step(
        mx.array(PROMPT),
        language_model("llama"),
        max_tokens=60,
        logits_processors=make_logits_processors(**arguments),
    )
    text = [int(token) for token, _ in steps]
    for accepted in (0, 3, 7):
        draft = ScriptedDraft(draft_config(), PROMPT + text, lambda _, a=accepted: a)  # type: ignore[misc]
        done = run(
            make_pair("llama", draft),
            PROMPT,
            CHANGING,
            max_tokens=60,
            sampling=Sampling(**penalties),
            compiled=compiled,
        )
        assert ids_of(done) == text, accepted


SAMPLED = Sampling(temperature=1.0, top_k=8, presence_penalty=0.7)


@pytest.mark.parametrize("dflash2", [False, True])
@COMPILED
def test_whole_blocks_are_fixed_rounds(dflash2: bool, compiled: bool) -> None:
    """Sampled text, too, with the same random numbers: the order of work is all that differs."""
    config = draft_config(dflash2=DFlash2(2, 16, 32, 8) if dflash2 else None)
    mx.random.seed(11)
    draft = draft_for(config, VOCAB - 3).prepare()
    options = {"sampling": SAMPLED, "seed": 5, "compiled": compiled, "max_tokens": 60}
    fixed = list(rounds(make_pair("llama", draft), PROMPT, Options(**options)))  # type: ignore[arg-type]
    adaptive = run(make_pair("llama", draft), PROMPT, [8], **options)
    whole = [r for r in adaptive[1:] if r.drafted == 7]  # at the end less than a block is wanted
    assert whole == fixed[1 : 1 + len(whole)]
    assert len(whole) > 20


@COMPILED
def test_a_seed_reproduces_a_sampled_answer(compiled: bool) -> None:
    """Though the clock is another one, and other answers came between."""
    pair = priced(make_pair("llama", random_draft(draft_config())))
    assert pair.costs is not None
    pair.costs._still = False
    options = Options(max_tokens=40, block=AUTO, seed=3, sampling=SAMPLED, compiled=compiled)
    first = list(rounds(pair, PROMPT, options))
    list(rounds(pair, PROMPT, Options(max_tokens=40, block=AUTO, compiled=compiled)))
    assert list(rounds(pair, PROMPT, options)) == first


def test_one_transfer_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    from dflash_mlx import adaptive, decode

    read, count = decode.read, 0

    def counted(packed: mx.array) -> list[int]:
        nonlocal count
        count += 1
        return read(packed)

    prompt, _, pair = right_up_to("llama", 24, 5)
    monkeypatch.setattr(decode, "read", counted)
    monkeypatch.setattr(adaptive, "read", counted)
    done = run(pair, prompt, [4])
    # One for the first token, which the prefill brings, and one for the first block.
    assert count == len(done) + 1


def test_rows_are_written_in_place() -> None:
    from .test_kv import address, kept_rows

    for compiled in (True, False):
        prompt, _, pair = right_up_to("llama", 24, 5)
        session = Session(pair.target, pair.draft)
        places = []
        with scripted(Script((8, 3, 5))):
            options = Options(max_tokens=COUNT, block=AUTO, compiled=compiled)
            for _ in rounds(pair, prompt, options, session):
                places.append([address(a) for a in kept_rows(session)])
        assert len(places) > 6
        assert all(place == places[2] for place in places[3:])


def test_a_kernel_that_fails_leaves_the_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from dflash_mlx.ahead import AheadStep

    prompt, text, pair = right_up_to("qwen3_5", 24, 5)
    pair.kernels = Kernels("on", None)
    call, calls = AheadStep.__call__, 0

    def failing(self: AheadStep, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        done = call(self, *args)
        if calls == 5:
            raise RuntimeError("out of time")
        return done

    monkeypatch.setattr(AheadStep, "__call__", failing)
    assert ids_of(run(pair, prompt, (4, 8, 2))) == text
    assert pair.kernels.mode == "off"
    assert calls > 6


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_kernels_race_at_every_width(family: str) -> None:
    prompt, text, pair = right_up_to(family, 24, 2, count=300)
    pair.kernels = Kernels("auto", None)
    pair.kernels.chip = Chip(16)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(Kernels, "pick", lambda *_, **__: None)  # no Metal to run them on
    try:
        done = run(pair, prompt, (4, 2), max_tokens=150)
    finally:
        monkey.undo()
    assert ids_of(done) == text[:150]
    assert {key[1] for key, trial in pair.trials.items() if trial.ratio is not None} == {2, 4}
