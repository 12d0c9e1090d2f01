"""The policy on cases worked out by hand, and on made-up texts."""

import math
import random

import pytest

from dflash_mlx.costs import CostCurve, widths_of
from dflash_mlx.width import FIRST_REST, LONGEST_REST, TRIED, Calibration, Policy, log_odds

from .choosers import Fixed, linear

SURE, EVEN = 0.9999, 0.5


def policy(curve: CostCurve, ordered: bool = False, learned: int = TRIED) -> Policy:
    """For blocks of 4, with a calibration that takes probabilities at their word."""
    calibration = Calibration(3)
    calibration.rounds = learned
    return Policy(Fixed(curve), curve.widths, calibration, ordered)


def test_log_odds() -> None:
    assert log_odds(0.5) == 0
    assert log_odds(0.9) == pytest.approx(math.log(9))
    assert log_odds(1.0) == -log_odds(0.0) == log_odds(1 - 1e-9)


def test_a_new_calibration_believes_the_draft() -> None:
    assert Calibration(3).chances([0.5, 0.9, 0.1]) == pytest.approx([0.5, 0.9, 0.1])


def test_calibration_learns_that_the_draft_is_too_sure() -> None:
    rng, calibration = random.Random(1), Calibration(3)
    for _ in range(3000):
        certainty = [rng.uniform(0.05, 0.98) for _ in range(3)]
        kept = [rng.random() < 0.6 * p for p in certainty]
        calibration.learn(certainty, 3, kept.index(False) if False in kept else 3)
    for p in (0.3, 0.6, 0.9):
        assert calibration.chances([p, p, p]) == pytest.approx([0.6 * p] * 3, abs=0.09)


def test_calibration_tells_places_apart() -> None:
    calibration = Calibration(2)
    for _ in range(300):
        calibration.learn([0.5, 0.5], 2, 1)
    first, second = calibration.chances([0.5, 0.5])
    assert first > 0.8
    assert second < 0.2


def test_places_that_were_not_judged_teach_nothing() -> None:
    """Neither what was not verified, nor what stands behind a token that was rejected."""
    judged, calibration = Calibration(3), Calibration(3)
    judged.learn([0.5], 1, 1)
    calibration.learn([0.5, 0.9, 0.1], 1, 1)
    assert calibration.offsets == judged.offsets
    calibration.learn([0.5, 0.9, 0.1], 3, 0)
    assert calibration.offsets[1:] == [0, 0]


def test_where_nothing_is_known_a_place_is_as_usual() -> None:
    calibration = Calibration(2)
    for _ in range(400):
        calibration.learn([0.5, 0.8], 0, 0)
    assert calibration.usual(0) == pytest.approx(0.5, abs=0.01)
    assert calibration.usual(1) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("certainty", "width"),
    [
        # A round of width w takes 1.2 + 0.2 (w - 1); by quotients, tokens per time:
        ([SURE, SURE, SURE], 4),  # 4 / 1.8
        ([EVEN, EVEN, EVEN], 2),  # 1.5 / 1.4 > 1.75 / 1.6 = 1.09 > 1.07: see below
        ([SURE, 0.01, SURE], 2),
        ([SURE, SURE, 0.01], 3),
    ],
)
def test_the_first_width_has_the_largest_quotient(certainty: list[float], width: int) -> None:
    by_hand = {}
    tokens = reached = 1.0
    for w in range(1, 5):
        by_hand[w] = tokens / (1.2 + 0.2 * (w - 1))
        reached *= certainty[w - 1] if w < 4 else 0
        tokens += reached
    best = max(by_hand, key=by_hand.__getitem__)
    assert policy(linear(4, 0.2, 0.2)).choose(certainty, 100, 4) == best
    if width != 2 or certainty[0] == SURE:
        assert best == width


def test_time_is_worth_what_other_rounds_make_of_it() -> None:
    """A block of even chances: verified further where time is cheap than where it is dear."""
    curve, block = linear(4, 0.1, 0.1), [0.6, 0.6, 0.6]
    easy, hard = policy(curve), policy(curve)
    for _ in range(60):
        assert easy.choose([SURE] * 3, 100, 4) == 4
        easy._count(4, curve.round(4, 100))
        hard.choose([0.5, 0.3, 0.3], 100, 4)
        hard._count(1.5, curve.round(2, 100))
    # The last token adds 0.6 ** 3 = 0.22 tokens and 0.1 s, worth 0.29 or 0.13 tokens.
    assert easy.choose(block, 100, 4) == 3
    assert hard.choose(block, 100, 4) == 4


def test_no_more_is_verified_than_is_wanted() -> None:
    for most in (2, 3, 4):
        assert policy(linear(4, 0.0)).choose([SURE] * 3, 100, most) == most
    assert policy(linear(4, 0.0)).choose([SURE] * 3, 100, 1) == 0  # a last token needs no draft


def test_a_draft_that_does_not_pay_rests_longer_and_longer() -> None:
    chooser, poor = policy(linear(4, 1.0, 0.5)), [0.2] * 3
    rests = []
    while not rests or rests[-1] < LONGEST_REST:
        assert chooser.choose(poor, 100, 4) == 0
        rests.append(chooser.rest())
    assert rests == [FIRST_REST * 2**i for i in range(len(rests))]
    # Then one round is tried, whatever it promises: what is never verified teaches nothing.
    for _ in range(3):
        width = chooser.choose(poor, 100, 4)
        assert width > 0
        chooser.learn(poor, width - 1, 0)
        for _ in range(2):
            assert chooser.choose(poor, 100, 4) == 0
            assert chooser.rest() == LONGEST_REST


def test_a_block_that_promises_more_ends_the_rest() -> None:
    chooser = policy(linear(4, 0.3, 0.2))
    for _ in range(3):
        assert chooser.choose([0.1] * 3, 100, 4) == 0
        chooser.rest()
    assert chooser.choose([SURE] * 3, 100, 4) == 4
    chooser.learn([SURE] * 3, 3, 3)
    assert chooser.choose([0.1] * 3, 100, 4) in (0, 1)
    assert chooser.rest() == FIRST_REST


def test_promises_that_are_not_kept_do_not_carry_poor_blocks() -> None:
    """Every third block promises much; where it brings nothing, the draft rests behind it."""
    good, poor = [0.9] * 3, [0.2] * 3

    def widths(accepted: int) -> list[int]:
        chooser, found = policy(linear(4, 0.2, 0.2)), []
        for certainty in (good, poor, poor) * 3:
            width = chooser.choose(certainty, 100, 4)
            if width:
                chooser.learn(certainty, width - 1, min(accepted, width - 1))
            found.append(width)
        return found

    assert 0 not in widths(accepted=3)
    assert 0 in widths(accepted=0)


def test_the_first_rounds_of_a_new_draft_are_tried() -> None:
    chooser = policy(linear(4, 1.0, 0.5), learned=0)
    for _ in range(TRIED):
        width = chooser.choose([0.2] * 3, 100, 4)
        assert width > 0
        chooser.learn([0.2] * 3, width - 1, 0)
    assert chooser.choose([0.2] * 3, 100, 4) == 0


def test_in_order_later_places_do_not_count() -> None:
    """Two tokens are dear and four no dearer: worth it where all are sure."""
    step = CostCurve((1, 2, 4), (1,), ((1.0, 2.5, 2.5),), (0.01,), 0.0)
    first = 0.8
    looking = {policy(step).choose([first, second, second], 9, 4) for second in (0.05, 0.5, SURE)}
    in_order = {
        policy(step, ordered=True).choose([first, second, second], 9, 4)
        for second in (0.05, 0.5, SURE)
    }
    assert len(looking) > 1
    # The second probability decides about the tokens from the second on, not about the first.
    assert {width > 1 for width in in_order} in ({True}, {False})


@pytest.mark.parametrize("per_token", [0.02, 0.15, 0.6, 1.5])
def test_close_to_the_best_fixed_width_or_plain_decoding(per_token: float) -> None:
    """On text that changes between easy and hard, tokens per second by the prices alone."""
    curve = linear(8, per_token, 0.2)
    rng = random.Random(4)
    blocks = []
    for i in range(4000):
        level = 0.92 if i // 200 % 2 else 0.35
        chances = [min(0.99, max(0.02, rng.gauss(level, 0.15))) for _ in range(7)]
        kept = next((j for j, p in enumerate(chances) if rng.random() > p), 7)
        blocks.append((chances, kept))

    def rate(choose: object) -> float:
        chooser = Policy(Fixed(curve), widths_of(8), Calibration(7))
        place, seconds = 0, 0.2
        while place < len(blocks):
            certainty, kept = blocks[place]
            width = chooser.choose(certainty, 1, 8) if choose is None else choose
            assert isinstance(width, int)
            if width == 0:
                rest = chooser.rest() if choose is None else len(blocks)
                place, seconds = place + rest, seconds + rest + (0.2 if choose is None else 0)
                continue
            accepted = min(kept, width - 1)
            if choose is None:
                chooser.learn(certainty, width - 1, accepted)
            place, seconds = place + accepted + 1, seconds + curve.round(width, 1)
        return place / seconds

    best = max(rate(width) for width in range(9))
    assert rate(None) > 0.97 * best
    if per_token in (0.15, 0.6):
        assert rate(None) > 1.03 * best
