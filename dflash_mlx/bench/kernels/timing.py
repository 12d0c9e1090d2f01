"""Times of operations that differ by little: in turns, in chains, without what the chain costs.

One call is too short to time: the launch and the wait for it take longer. A sample therefore is a
chain of calls, computed at once, in which each waits for the one before it, as the layers of a
decode step do. Waiting takes an operation of its own, so chains of that alone are timed too, and
the median of those is taken off. All are timed in turns: clocks and temperatures drift.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import mlx.core as mx

from .cases import Case, Inputs, arrays

LEAST_SAMPLES = 3
MOST_CALLS = 512
ALONE = "waiting"  # the chain without calls

Way = Callable[[Inputs, Inputs], Any]  # of one set of inputs, and of what belongs to it in `hints`


@dataclass(frozen=True)
class Pace:
    """How long to time.

    Attributes:
        sample: seconds that a chain takes at least.
        repeat: samples of everything.
        seconds: no further sample is begun after this, once there are LEAST_SAMPLES.
        warm: seconds of everything that are not counted.
    """

    sample: float = 0.01
    repeat: int = 20
    seconds: float = 1.0
    warm: float = 0.03


@dataclass(frozen=True)
class Times:
    """Samples: seconds per call, by name, those of the same place taken in a row.

    Attributes:
        waiting: seconds per call that are not the call's; already taken off.
    """

    samples: Mapping[str, list[float]]
    waiting: float
    calls: int


def interleaved(case: Case, ways: Mapping[str, Way], pace: Pace) -> Times:
    """Time several ways to do one thing, in turns.

    Args:
        ways: by name. The first decides how many calls make a chain.
    """
    chains: dict[str, Way | None] = {**ways, ALONE: None}
    calls = _calls(case, next(iter(ways.values())), pace.sample)
    for way in chains.values():
        _warm(case, way, calls, pace.warm)
    samples: dict[str, list[float]] = {name: [] for name in chains}
    began, order = time.perf_counter(), list(chains)
    for taken in range(pace.repeat):
        if taken >= LEAST_SAMPLES and time.perf_counter() - began > pace.seconds:
            break
        for name in order:
            samples[name].append(_sample(case, chains[name], taken * calls, calls))
        order = order[1:] + order[:1]
    waiting = median(samples.pop(ALONE))
    return Times(
        {name: [max(0.0, s - waiting) for s in taken] for name, taken in samples.items()},
        waiting,
        calls,
    )


def spread(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _calls(case: Case, way: Way, seconds: float) -> int:
    """How many calls take so long, the making of their graph included."""
    calls = 1
    while calls < MOST_CALLS:
        began = time.perf_counter()
        mx.eval(_chain(case, way, 0, calls))
        if time.perf_counter() - began >= seconds:
            break
        calls *= 2
    return calls


def _warm(case: Case, way: Way | None, calls: int, seconds: float) -> None:
    began = time.perf_counter()
    while True:
        _sample(case, way, 0, calls)
        if time.perf_counter() - began >= seconds:
            return


def _sample(case: Case, way: Way | None, first: int, calls: int) -> float:
    """Seconds per call. The graph is made before the clock starts, as a compiled step has it."""
    end = _chain(case, way, first, calls)
    began = time.perf_counter()
    mx.eval(end)
    return (time.perf_counter() - began) / calls


def _chain(case: Case, way: Way | None, start: int, calls: int) -> mx.array:
    """The result of the last of so many calls, each of which waits for the one before it."""
    behind = mx.zeros(1)
    for call in range(start, start + calls):
        behind = _link(case, way, call % len(case.sets), behind)
    return behind


def _link(case: Case, way: Way | None, index: int, before: mx.array) -> mx.array:
    """One result of one call, which stands for all of them."""
    waited: list[mx.array] = []

    def wait(array: mx.array) -> mx.array:
        waited.append(_behind(array, before))
        return waited[-1]

    inputs = case.tie(case.sets[index], wait)
    result, *others = arrays(way(inputs, case.hint(index))) if way else waited
    # All results have to be there, and MLX leaves out what nobody asks for.
    return mx.depends(result, others) if others else result


@mx.compile
def _behind(array: mx.array, before: mx.array) -> mx.array:
    """`array`, once `before` is there: one small kernel adds a value that is always false."""
    one = before[(slice(0, 1),) * before.ndim].reshape(1).astype(mx.float32)
    return array + (mx.isnan(one) & mx.isinf(one)).astype(array.dtype)
