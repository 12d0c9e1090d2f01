"""Intervals and tests: known values, and how often intervals cover the truth."""

from math import isclose

import numpy as np
import pytest

from dflash_mlx.bench.repetition import repetition
from dflash_mlx.bench.statistics import mcnemar, median_interval, sign_test, wilson


def test_the_median_and_its_interval() -> None:
    found = median_interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert found is not None
    assert (found.value, found.n) == (3.0, 5)
    assert found.low == 1.0
    assert found.high == 100.0  # the middle of five draws is the largest in 5.8 % of them
    assert found == median_interval([1.0, 2.0, 3.0, 4.0, 100.0])


def test_too_few_values_have_no_interval() -> None:
    assert median_interval([]) is None
    assert median_interval([2.0]) == (2.0, None, None, 1)
    assert median_interval([2.0, 4.0]) == (3.0, None, None, 2)


def test_equal_values_leave_no_doubt() -> None:
    assert median_interval([1.5] * 9) == (1.5, 1.5, 1.5, 9)


@pytest.mark.parametrize("size", [10, 25])
def test_the_interval_covers_the_true_median(size: int) -> None:
    """Ratios as benchmarks have them: skewed, of median 1.3."""
    chance = np.random.default_rng(7)
    covered = 0
    for trial in range(400):
        values = 1.3 * np.exp(0.3 * chance.standard_normal(size))
        found = median_interval(values.tolist(), seed=trial)
        assert found is not None and found.low is not None and found.high is not None
        covered += found.low <= 1.3 <= found.high
    assert 0.91 <= covered / 400 <= 0.99


def test_wilson() -> None:
    """Against the closed form's published examples (Newcombe 1998, table I)."""
    for right, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        found = wilson(right, total)
        assert found is not None and found.low is not None and found.high is not None
        assert isclose(found.low, low, abs_tol=5e-5)
        assert isclose(found.high, high, abs_tol=5e-5)
    none = wilson(0, 20)
    assert none is not None and none.low is not None and none.high is not None
    assert (round(none.low, 4), round(none.high, 4)) == (0.0, 0.1611)
    assert wilson(0, 0) is None


def test_mcnemar() -> None:
    first = [True] * 12 + [False] * 3 + [True] * 2 + [False]
    second = [True] * 12 + [True] * 3 + [False] * 2 + [False]
    found = mcnemar(first, second)
    assert found[:4] == (12, 2, 3, 1)
    assert found.p_value == 1.0


def test_the_sign_test_is_exact() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(0, 5) == 2 / 2**5
    assert sign_test(1, 9) == 2 * (1 + 10) / 2**10
    assert sign_test(9, 1) == sign_test(1, 9)
    assert sign_test(3, 3) == 1.0


def test_a_text_that_goes_in_circles_is_marked() -> None:
    text = list(range(40)) + [7, 8, 9] * 20
    found = repetition(text)
    assert found.loop == 60
    assert found.degenerate


def test_every_repeated_sentence_counts_not_the_last_alone() -> None:
    sentence = list(range(50))  # longer than the longest unit that is looked for
    found = repetition(sentence * 3)
    assert found.loop == 0
    assert found.distinct == pytest.approx(50 / 147)
    assert found.degenerate


def test_ordinary_texts_are_not_marked() -> None:
    assert not repetition(range(200)).degenerate
    assert not repetition([1, 2, 3] * 5).degenerate  # too short to be a loop
    assert not repetition([*range(100), *[5] * 10, *range(100, 200)]).degenerate
    assert repetition([]).distinct == 1.0


def test_two_of_a_kind_are_a_loop_of_two() -> None:
    assert repetition([1, 2, 3, 3, 4]).loop == 2
    assert repetition([1, 2, 1, 2, 5]).loop == 4
    assert repetition([1, 2, 3, 4]).loop == 0
