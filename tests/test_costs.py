"""Cost curves: the fit, between and beyond what was measured, and corrections in use."""

import random
from typing import Any

import pytest

from dflash_mlx.costs import Corrected, CostCurve, fitted, rising, widths_of
from dflash_mlx.errors import CheckpointError

CURVE = CostCurve((1, 2, 4), (100, 1100), ((1.0, 1.2, 2.0), (2.0, 2.4, 4.0)), (0.5, 0.6), 0.1)


@pytest.mark.parametrize(
    ("values", "fit"),
    [
        ([], []),
        ([1, 2, 3], [1, 2, 3]),
        ([1, 3, 2, 4], [1, 2.5, 2.5, 4]),
        ([3, 2, 1], [2, 2, 2]),
        ([1, 5, 2, 3, 6], [1, 10 / 3, 10 / 3, 10 / 3, 6]),
        ([4, 4, 1], [3, 3, 3]),
        ([2, 1, 4, 3], [1.5, 1.5, 3.5, 3.5]),
    ],
)
def test_rising(values: list[float], fit: list[float]) -> None:
    assert rising(values) == pytest.approx(fit)


def test_no_rising_sequence_is_nearer() -> None:
    """Against rising sequences drawn at random near the fit."""
    rng = random.Random(0)
    for _ in range(30):
        values = [rng.gauss(i / 3, 1) for i in range(6)]
        fit = rising(values)
        assert fit == sorted(fit)
        assert sum(fit) == pytest.approx(sum(values))
        far = sum((a - b) ** 2 for a, b in zip(fit, values, strict=True))
        for _ in range(200):
            other = sorted(f + rng.gauss(0, 0.2) for f in fit)
            assert sum((a - b) ** 2 for a, b in zip(other, values, strict=True)) >= far - 1e-9


def test_fitted_times_rise_with_width_and_context() -> None:
    curve = fitted((1, 2), (10, 20), [[2.0, 1.0], [1.2, 1.4]], [3.0, 1.0], -0.5)
    assert curve.verify == ((1.35, 1.45), (1.35, 1.45))
    assert curve.draft == (2.0, 2.0)
    assert curve.host == 0.0


def test_widths() -> None:
    assert widths_of(16) == (1, 2, 3, 4, 6, 8, 12, 16)
    assert widths_of(5) == (1, 2, 3, 4, 5)
    assert widths_of(10) == (1, 2, 3, 4, 6, 8, 10)
    assert widths_of(2) == (1, 2)


def test_between_and_beyond() -> None:
    assert CURVE.target(2, 100) == 1.2
    assert CURVE.target(3, 100) == pytest.approx(1.6)
    assert CURVE.target(3, 600) == pytest.approx(2.4)
    assert CURVE.target(1, 2100) == pytest.approx(3.0)  # attention goes on growing
    assert CURVE.target(1, 1) == 1.0
    assert CURVE.plain(600) == pytest.approx(1.5)
    assert CURVE.round(4, 100) == pytest.approx(2.6)


def test_json_and_back() -> None:
    assert CostCurve.from_dict(CURVE.as_dict(), "x") == CURVE


@pytest.mark.parametrize(
    "change",
    [
        {"widths": [2, 3, 4]},
        {"widths": [1, 4, 2]},
        {"widths": None},
        {"contexts": [100]},
        {"contexts": []},
        {"verify": [[1.0, 1.2, 2.0]]},
        {"verify": [[1.0, 1.2], [2.0, 2.4]]},
        {"verify": [[0.0, 1.2, 2.0], [2.0, 2.4, 4.0]]},
        {"verify": [[float("nan"), 1.2, 2.0], [2.0, 2.4, 4.0]]},
        {"draft": [0.5]},
        {"draft": "no"},
        {"host": -1},
        {"host": "much"},
    ],
    ids=str,
)
def test_what_is_no_curve(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^file: .*times of passes"):
        CostCurve.from_dict(CURVE.as_dict() | change, "file")


def test_a_slower_machine_changes_no_order() -> None:
    costs = Corrected(CURVE)
    for _ in range(200):
        for width in (1, 2, 4):
            costs.time(width, 100, 3 * CURVE.round(width, 100))
        costs.time(0, 100, 3 * CURVE.plain(100))
    for width in (1, 2, 4):
        assert costs.round(width, 100) == pytest.approx(3 * CURVE.round(width, 100), rel=0.02)
    # Of a width never used, too.
    assert costs.round(3, 100) > 1.7 * CURVE.round(3, 100)


def test_a_width_that_takes_longer_than_measured() -> None:
    costs = Corrected(CURVE)
    for _ in range(200):
        costs.time(2, 100, CURVE.round(2, 100))
        costs.time(4, 100, 2 * CURVE.round(4, 100))
    assert costs.round(2, 100) == pytest.approx(CURVE.round(2, 100), rel=0.1)
    assert costs.round(4, 100) == pytest.approx(2 * CURVE.round(4, 100), rel=0.1)


def test_one_stall_changes_little() -> None:
    costs = Corrected(CURVE)
    costs.time(2, 100, 100.0)
    costs.time(2, 100, 0.0)
    costs.time(2, 100, 100.0)
    assert costs.round(2, 100) < 1.1 * CURVE.round(2, 100)


def test_still_costs_stay() -> None:
    costs = Corrected(CURVE, still=True)
    costs.time(2, 100, 100.0)
    assert costs.round(2, 100) == CURVE.round(2, 100)
