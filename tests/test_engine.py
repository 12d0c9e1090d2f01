"""Many requests in one engine: who runs when, and how each of them ends."""

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

import dflash_mlx.engine.engine as engine_module
from dflash_mlx.engine import Engine, EngineOptions, Ticket
from dflash_mlx.engine.memory import size_of
from dflash_mlx.engine.prefixes import Fresh
from dflash_mlx.errors import Busy, UsageError
from dflash_mlx.generation import Response, rounds, stream_generate
from dflash_mlx.loading import Pair
from dflash_mlx.options import AUTO, Options
from dflash_mlx.sampling import Sampling
from dflash_mlx.session import Session

from .choosers import priced
from .families import FAMILIES, draft_config, make_pair, prompt_of, random_draft
from .tiny import letters, options, tiny_pair, tokenizer

SOON = 60.0  # seconds after which a test fails instead of hanging


def prompts(count: int) -> list[list[int]]:
    """Prompts of mixed lengths."""
    return [prompt_of(5 + 17 * i % 60, seed=i) for i in range(count)]


def alone(pair: Pair, prompt: Sequence[int], wanted: Options) -> list[int]:
    return [token for round_ in rounds(pair, prompt, wanted) for token in round_.tokens]


def told(ticket: Ticket) -> list[Response]:
    """All responses of a request."""
    responses = []
    while (response := ticket.get(SOON)) is not None:
        responses.append(response)
    return responses


def ids_of(responses: Sequence[Response]) -> list[int]:
    return [token for response in responses for token in response.tokens]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


class Gate(Fresh):
    """Holds the model thread before a request starts, as often as `open` is not called."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.reached, self._go = threading.Semaphore(0), threading.Semaphore(0)
        self.checkpoints: list[int] = []
        self.stored: list[int] = []

    def open(self, count: int = 1) -> None:
        self._go.release(count)

    def take(self, ids: Sequence[int]) -> Session:
        self.reached.release()
        assert self._go.acquire(timeout=SOON)
        return super().take(ids)

    def checkpoint(self, session: Session) -> None:
        self.checkpoints.append(len(session.ids))

    def put(self, session: Session) -> None:
        self.stored.append(len(session.ids))


@contextmanager
def gated(pair: Pair, chosen: EngineOptions) -> Iterator[tuple[Engine, Gate]]:
    """An engine whose requests start when the gate lets them."""
    gate = Gate(pair)
    engine = Engine(pair, chosen, gate)
    try:
        yield engine, gate
    finally:
        gate.open(1000)
        engine.close()


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


# How requests end


def test_cancelling_frees_the_place_within_a_round() -> None:
    pair = tiny_pair()
    with gated(pair, EngineOptions(places=1)) as (engine, gate):
        endless = engine.submit(prompt_of(4), options(1900))
        waiting = engine.submit(prompt_of(4), options(5))
        gone = engine.submit(prompt_of(4), options(5))
        gone.cancel()
        gate.open(2)
        assert endless.get(SOON) is not None
        endless.cancel()
        assert len(ids_of(told(waiting))) == 5
        assert len(ids_of(told(endless))) < 1000
        assert told(gone) == []
        assert engine.counters.cancelled == 2
        assert len(gate.stored) == 2


def test_cancelling_while_the_prompt_is_read() -> None:
    pair = tiny_pair()
    slow = replace(options(4), prefill_chunk=1)
    with gated(pair, EngineOptions(places=1)) as (engine, gate):
        ticket = engine.submit(prompt_of(900), slow)
        gate.open()
        until(lambda: engine.counters.prefilled > 3)
        ticket.cancel()
        assert told(ticket) == []
        assert engine.counters.prefilled < 900
        assert engine.counters.running == 0


class Failing(Fresh):
    """Breaks in the prefill of prompts that begin with 13, and when it stores one with 14."""

    def checkpoint(self, session: Session) -> None:
        if session.ids[0] == 13:
            raise RuntimeError("no luck")

    def put(self, session: Session) -> None:
        if session.ids[:1] == [14]:
            raise OSError("disk full")


def test_an_error_leaves_others_alone(caplog: pytest.LogCaptureFixture) -> None:
    pair = tiny_pair()
    with Engine(pair, EngineOptions(), Failing(pair)) as engine:
        tickets = [engine.submit([first, 1, 2], options(9)) for first in (12, 13, 14, 15)]
        with pytest.raises(RuntimeError, match="no luck"):
            told(tickets.pop(1))
        assert [ids_of(told(t)) for t in tickets] == [
            alone(pair, [first, 1, 2], options(9)) for first in (12, 14, 15)
        ]
        assert (engine.counters.failed, engine.counters.finished) == (1, 3)
    assert "could not be stored" in caplog.text


def test_a_consumer_that_cannot_be_notified(caplog: pytest.LogCaptureFixture) -> None:
    def gone() -> None:
        raise RuntimeError("Event loop is closed")

    with Engine(tiny_pair()) as engine:
        ticket = engine.submit([1, 2], options(5), notify=gone)
        assert len(ids_of(told(ticket))) == 5
        assert len(ids_of(told(engine.submit([1, 2], options(5))))) == 5
    assert "could not be notified" in caplog.text


def test_a_failed_pass_ends_those_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine_module, "run_round", broken)
    pair = tiny_pair()
    with Engine(pair) as engine:
        jobs = [options(30), options(30), replace(options(9), block=2)]
        tickets = [engine.submit(prompt_of(4), job) for job in jobs]
        assert len(ids_of(told(tickets[2]))) == 9
        for ticket in tickets[:2]:
            with pytest.raises(RuntimeError, match="out of memory"):
                told(ticket)
        assert engine.counters.failed == 2


def test_close_ends_what_runs_and_what_waits() -> None:
    pair = tiny_pair()
    gate = Gate(pair)
    engine = Engine(pair, EngineOptions(places=1), gate)
    running, waiting = (engine.submit(prompt_of(4), options(1900)) for _ in range(2))
    gate.open(1)
    first = running.get(SOON)
    engine.close()
    responses = told(running)
    assert first is not None and first.finish_reason is None
    assert responses[-1].finish_reason == "length"
    with pytest.raises(Busy, match="closed before"):
        told(waiting)
    with pytest.raises(Busy, match="closed"):
        engine.submit([1], options(3))
    engine.close()


def test_a_timeout() -> None:
    with gated(tiny_pair(), EngineOptions()) as (engine, gate):
        ticket = engine.submit([1], options(3))
        with pytest.raises(TimeoutError, match="no response within"):
            ticket.get(0.01)
        gate.open()
        assert len(ids_of(told(ticket))) == 3


def test_nothing_stays_behind() -> None:
    """After all requests have ended, however they did, no cache is held."""
    pair = tiny_pair()
    with Engine(pair, EngineOptions(places=3), Failing(pair)) as engine:

        def all_kinds() -> None:
            tickets = [engine.submit([12 + i % 2, *prompt_of(40)], options(9)) for i in range(6)]
            tickets[0].cancel()
            for ticket in tickets:
                with suppress(RuntimeError):
                    told(ticket)
            until(lambda: engine.counters.running == 0)

        all_kinds()
        gc.collect()
        before = mx.get_active_memory()
        all_kinds()
        until(lambda: engine.counters.finished + engine.counters.failed >= 10)
        gc.collect()
        assert mx.get_active_memory() <= before
        assert engine.counters.memory == 0
