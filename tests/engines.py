"""Engines whose requests start when a test lets them, and what comes out of them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dflash_mlx.engine import Engine, EngineOptions, Ticket
from dflash_mlx.engine.prefixes import Fresh
from dflash_mlx.generation import Response, rounds
from dflash_mlx.loading import Pair
from dflash_mlx.options import Options
from dflash_mlx.session import Session

from .families import prompt_of

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

    def take(self, ids: Sequence[int], stable: Sequence[int] = ()) -> Session:
        self.reached.release()
        assert self._go.acquire(timeout=SOON)
        return super().take(ids, stable)

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
