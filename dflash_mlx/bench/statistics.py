"""Intervals and tests; pure functions of numbers.

Prompts are the sample: another run would draw others, of other difficulty. So intervals resample
prompts, not tokens, of which the same prompt gives many alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from typing import NamedTuple

import numpy as np

RESAMPLES = 4000
Z95 = 1.959963984540054


class Interval(NamedTuple):
    """A figure with its 95 % interval; without bounds where there are too few values for one."""

    value: float
    low: float | None
    high: float | None
    n: int


class Paired(NamedTuple):
    """Two ways on the same problems, and McNemar's exact test of whether they differ.

    Attributes:
        both, only_first, only_second, neither: problems answered right.
        p_value: how often chance alone splits those that only one got right as unevenly.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float


def median_interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """The median, with the percentile bootstrap's 95 % interval over the values."""
    if not values:
        return None
    data = np.asarray(values, dtype=float)
    if len(data) < 3:
        return Interval(float(np.median(data)), None, None, len(data))
    drawn = np.random.default_rng(seed).integers(0, len(data), (RESAMPLES, len(data)))
    low, high = np.percentile(np.median(data[drawn], axis=1), [2.5, 97.5])
    return Interval(float(np.median(data)), float(low), float(high), len(data))


def wilson(right: int, total: int) -> Interval | None:
    """The share of right ones with Wilson's 95 % interval."""
    if total == 0:
        return None
    share, square = right / total, Z95**2
    middle = (share + square / (2 * total)) / (1 + square / total)
    reach = Z95 * sqrt(share * (1 - share) / total + square / (4 * total**2)) / (1 + square / total)
    return Interval(share, max(0.0, middle - reach), min(1.0, middle + reach), total)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare two ways on the same problems, in the same order."""
    pairs = list(zip(first, second, strict=True))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    return Paired(
        pairs.count((True, True)),
        only_first,
        only_second,
        pairs.count((False, False)),
        sign_test(only_first, only_second),
    )


def sign_test(a: int, b: int) -> float:
    """How often a fair coin, tossed a + b times, falls at least as unevenly: exact, two-sided."""
    n = a + b
    tail = sum(comb(n, k) for k in range(min(a, b) + 1))
    return min(1.0, 2 * tail / float(2**n))
