"""What the simulator says of the policy on recorded rounds; docs/tune.md has the figures."""

import random

import pytest

from dflash_mlx.costs import Corrected, widths_of
from dflash_mlx.width import Calibration, Policy

from .measure import simulate
from .measure.hindsight import hindsight
from .measure.replay import RECORD, Text, copied_tokens, oracle, read, seconds
from .measure.simulate import CURVES, Always, relative


@pytest.mark.parametrize("name", ["M4 Pro, 27B in 4 bits", "M4 Pro, 35B-A3B in 4 bits"])
def test_the_policy_against_other_rules(name: str) -> None:
    table = {name: {k: simulate.simulate(t, CURVES[name]) for k, t in read(RECORD).items()}}
    found = simulate.summary(table)
    assert found["to_best_fixed_least"] > 0.97
    assert found["to_plain_least"] > 0.95
    assert found["mixed_to_best_rule_least"] > 1.0
    assert found["to_oracle_mean"] > 0.77
    assert found["to_hindsight_mean"] > 0.97
    assert found["to_hindsight_least"] > 0.93


def test_hindsight_stands_between_ours_and_the_oracle() -> None:
    """Probabilities that say nothing are worth one width for all; true ones more, never all."""
    rng = random.Random(2)
    agreed = [rng.choice((0, 0, 0, 4)) for _ in range(400)]
    blind = Text("", 0, [[0.5] * 4] * 400, agreed)
    told = Text("", 0, [[0.9 if i < a else 0.1 for i in range(4)] for a in agreed], agreed)
    curve, widths = relative({1: 1.0, 5: 1.6}, draft=0.1), widths_of(5)
    best = oracle(blind, curve, widths)
    taken = [hindsight([text], curve, widths, 400 / best) for text in (blind, told)]
    one_for_all = min(seconds(blind, Always(w), curve) for w in widths)
    assert taken[0] > 0.98 * min(one_for_all, 400 * curve.plain(0))
    assert best <= taken[1] < 0.9 * taken[0]


def test_time_adds_up() -> None:
    text = Text("", 0, [[0.5] * 7] * 6, [2, 0, 0, 1, 0, 0])
    curve = relative({1: 1.0, 4: 1.6}, draft=0.5, host=0.1)
    # A draft, then rounds from places 0, 3 and 5: of 4 tokens, of 3, as more are not left, of 1.
    assert seconds(text, Always(4), curve) == pytest.approx(0.6 + 2.2 + 2.0 + 1.6)
    # The fastest way: three tokens in a round of 3, two in one of 2, the last one plainly.
    assert oracle(text, curve, widths_of(8)) == pytest.approx(0.6 + 2.0 + 1.8 + 1.0)


def test_copies_add_up() -> None:
    # 1 2 3 comes again, and what followed it the first time; the draft never agrees.
    ids = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7]
    text = Text("", 9, [[0.01] * 7] * 4, [0] * 4, ids)
    assert copied_tokens(text) == [4, 3, 2, 1]
    curve = relative({1: 1.0, 5: 1.5}, draft=10.0, host=0.1)
    # One pass over the anchor and the three tokens that are left.
    assert oracle(text, curve, widths_of(8), copies=(2, 3, 4)) == pytest.approx(1.375 + 0.1)
    assert oracle(text, curve, widths_of(8)) == pytest.approx(4.0)
    policy = Policy(Corrected(curve, still=True), (1, 2), Calibration(7), copies=(2, 3, 4))
    taken = seconds(text, Always(1), curve, copies=policy)
    # Always(1) pays for a draft in the first round, by which the policy learns what time is worth.
    assert taken < 4 * curve.round(1, 0)


def test_the_record_holds_every_kind() -> None:
    kinds = read(RECORD)
    assert kinds.keys() == {"code", "math", "story", "json", "explain", "mixed"}
    assert sum(len(t.agreed) for t in kinds["mixed"]) > 1500
