"""How requests of an engine end: done, cancelled, failed, closed, with the process."""

import gc
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import dflash_mlx.engine.engine as engine_module
from dflash_mlx.engine import Engine, EngineOptions
from dflash_mlx.engine.prefixes import Fresh
from dflash_mlx.errors import Busy
from dflash_mlx.session import Session

from .engines import SOON, Gate, alone, gated, ids_of, told, until
from .families import prompt_of
from .tiny import options, tiny_pair

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

    monkeypatch.setattr(engine_module, "share", broken)
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


@pytest.mark.parametrize("end", ["engine.close()", ""])
def test_a_process_ends_with_its_engine(end: str) -> None:
    """MLX's part of a thread needs the interpreter until it is gone."""
    lines = [
        "from tests.tiny import options, tiny_pair",
        "from dflash_mlx.engine import Engine",
        "engine = Engine(tiny_pair())",
        "engine.submit([1, 2], options(500)).get()",
        end,
    ]
    run = [sys.executable, "-c", "; ".join(line for line in lines if line)]
    root = Path(__file__).parents[1]
    assert subprocess.run(run, cwd=root, timeout=3 * SOON).returncode == 0


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
