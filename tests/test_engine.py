"""Many requests in one engine: what comes out, who runs when, who is refused."""

from dataclasses import replace
from typing import Any

import pytest

from dflash_mlx.engine import Engine, EngineOptions
from dflash_mlx.engine.memory import size_of
from dflash_mlx.errors import Busy, UsageError
from dflash_mlx.generation import stream_generate
from dflash_mlx.options import AUTO, Options
from dflash_mlx.sampling import Sampling

from .choosers import priced
from .engines import SOON, alone, gated, ids_of, prompts, told, until
from .families import FAMILIES, draft_config, make_pair, prompt_of, random_draft
from .tiny import letters, options, tiny_pair, tokenizer

# What comes out


@pytest.mark.parametrize(("count", "together"), [(1, True), (4, True), (4, False), (16, True)])
def test_answers_are_those_given_alone(count: int, together: bool) -> None:
    pair = tiny_pair()
    wanted = [options(4 + 5 * i % 11) for i in range(count)]
    expected = [alone(pair, p, o) for p, o in zip(prompts(count), wanted, strict=True)]
    with Engine(pair, EngineOptions(places=max(1, count // 2), together=together)) as engine:
        tickets = [engine.submit(p, o) for p, o in zip(prompts(count), wanted, strict=True)]
        assert [ids_of(told(ticket)) for ticket in tickets] == expected
        counters = engine.counters
    assert (counters.finished, counters.running, counters.waiting) == (count, 0, 0)
    assert counters.tokens == sum(len(ids) for ids in expected)
    assert counters.prefilled == sum(len(p) for p in prompts(count))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    """They join while others are decoded, drafted and plain ones; one has widths of its own."""
    draft = random_draft(draft_config(block_size=4))
    pair = priced(make_pair(family, draft, tokenizer=tokenizer()))
    kinds: list[dict[str, Any]] = [{}, {"speculate": False}, {}, {"block": AUTO}, {"block": 2}]
    jobs = [
        (prompt_of(3 + 5 * i, seed=2), Options(max_tokens=6 - i, prefill_chunk=16, **kind))
        for i, kind in enumerate(kinds)
    ]
    expected = [alone(pair, *job) for job in jobs]
    with Engine(pair, EngineOptions(places=4)) as engine:
        assert [ids_of(told(t)) for t in [engine.submit(*job) for job in jobs]] == expected


def test_responses_are_those_of_stream_generate() -> None:
    pair = tiny_pair()
    wanted = options(30, stop=("q",))
    expected = list(stream_generate(pair, "hello", wanted))
    with Engine(pair) as engine:
        found = told(engine.submit(pair.encode("hello"), wanted))
    assert [(r.text, r.tokens, r.accepted, r.finish_reason) for r in found] == [
        (r.text, r.tokens, r.accepted, r.finish_reason) for r in expected
    ]
    assert found[-1].stats.prompt_tokens == expected[-1].stats.prompt_tokens


def test_sampled_answers_follow_their_seed() -> None:
    pair = tiny_pair()
    bias = tuple((token, 9.0) for token in letters(pair.tokenizer))
    sampling = Sampling(temperature=0.8, top_p=0.95, presence_penalty=0.3, logit_bias=bias)
    wanted = [Options(max_tokens=12, sampling=sampling, seed=seed) for seed in (1, 2, 3)]
    expected = [alone(pair, prompt_of(9), o) for o in wanted]
    assert len({tuple(ids) for ids in expected}) == 3
    with Engine(pair) as engine:
        tickets = [engine.submit(prompt_of(9), o) for o in wanted]
        assert [ids_of(told(ticket)) for ticket in tickets] == expected


def test_no_tokens_wanted() -> None:
    with Engine(tiny_pair()) as engine:
        (response,) = told(engine.submit([1, 2], options(0)))
    assert (response.tokens, response.finish_reason) == ((), "length")


def test_iterating_a_ticket() -> None:
    arrived = []
    with Engine(tiny_pair()) as engine:
        ticket = engine.submit([1, 2], options(5), notify=lambda: arrived.append(1))
        found = list(ticket)
        assert ticket.get() is None
    assert len(ids_of(found)) == 5
    assert len(arrived) == len(found) + 1


# Who runs when


def test_requests_take_turns() -> None:
    order: list[str] = []
    pair = tiny_pair()
    with gated(pair, EngineOptions(places=3)) as (engine, gate):
        for name in "abc":
            engine.submit(prompt_of(4), options(13), notify=lambda name=name: order.append(name))
        gate.open(3)
        until(lambda: len(order) >= 3 * 3)
    # Prompts are read one a turn; from the third turn on everyone gets a round in every turn.
    text = "".join(order)
    start = text.index("c")
    assert {text[i : i + 3] for i in range(start + 1, start + 7, 3)} == {"abc"}


def test_a_long_prompt_holds_up_nobody() -> None:
    """While a prompt of many chunks is read, others are decoded and a short one joins."""
    order: list[str] = []
    pair = tiny_pair()
    long = replace(options(4), prefill_chunk=4)
    with gated(pair, EngineOptions(places=3)) as (engine, gate):
        jobs = {"long": (prompt_of(200), long), "short": (prompt_of(6), options(9))}
        tickets = [
            engine.submit(*job, notify=lambda name=name: order.append(name))
            for name, job in jobs.items()
        ]
        gate.open(3)
        for ticket in tickets:
            assert told(ticket)
        assert gate.checkpoints[:3] in ([4, 6, 8], [6, 4, 8])
    assert set(order[: order.index("long")]) == {"short"}
    assert order.count("short") - 1 <= order.index("long")  # all of it, but perhaps its end


def test_places_go_in_order() -> None:
    pair = tiny_pair()
    with gated(pair, EngineOptions(places=1)) as (engine, gate):
        tickets = [engine.submit(prompt_of(length), options(3)) for length in (4, 9, 2, 5)]
        assert gate.reached.acquire(timeout=SOON)
        counters = engine.counters
        assert (counters.running, counters.waiting) == (1, 3)
        gate.open(4)
        assert all(len(ids_of(told(ticket))) == 3 for ticket in tickets)
    assert gate.stored == [6, 11, 4, 7]


# Who is refused


def test_a_full_queue_is_busy() -> None:
    with gated(tiny_pair(), EngineOptions(places=1, queue=2)) as (engine, gate):
        first = engine.submit([1], options(3))
        assert gate.reached.acquire(timeout=SOON)
        tickets = [engine.submit([1], options(3)) for _ in range(2)]
        with pytest.raises(Busy, match="2 requests wait already") as caught:
            engine.submit([1], options(3))
        assert caught.value.retry_after >= 1
        gate.open(3)
        assert all(len(ids_of(told(t))) == 3 for t in (first, *tickets))
        assert engine.counters.refused == 1


@pytest.mark.parametrize(
    ("prompt", "wanted", "message"),
    [
        ([], options(3), "the prompt is empty"),
        ([1] * 5000, options(3), "the prompt has 5000 tokens"),
        ([300], options(3), "outside the vocabulary"),
        ([1] * 9, options(1500), "1509 tokens of prompt and answer need .* MiB"),
    ],
)
def test_what_can_never_run_is_refused(prompt: list[int], wanted: Options, message: str) -> None:
    pair = tiny_pair()
    memory = size_of(pair).bytes(600)
    with Engine(pair, EngineOptions(memory=memory)) as engine:
        with pytest.raises(UsageError, match=message):
            engine.submit(prompt, wanted)
        assert len(ids_of(told(engine.submit([1], options(3))))) == 3


def test_what_does_not_fit_beside_others_waits() -> None:
    pair = tiny_pair()
    memory = size_of(pair).bytes(20) + size_of(pair).bytes(400)
    with gated(pair, EngineOptions(places=4, memory=memory)) as (engine, gate):
        jobs = [(5, 10), (390, 5), (390, 5), (5, 10)]
        tickets = [engine.submit(prompt_of(n), options(count)) for n, count in jobs]
        gate.open(2)
        until(lambda: engine.counters.waiting == 2)
        assert engine.counters.memory <= memory
        gate.open(2)
        assert [len(ids_of(told(t))) for t in tickets] == [10, 5, 5, 10]
        assert engine.counters.memory == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"places": 0}, "places is 0"),
        ({"queue": -1}, "queue is -1"),
        ({"memory": 0}, "memory is 0"),
    ],
)
def test_options_that_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineOptions(**wrong)
