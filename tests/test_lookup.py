"""What is copied from the text so far, how often it is right, and when it is verified."""

import itertools
from collections.abc import Sequence

import pytest

from dflash_mlx.costs import Corrected
from dflash_mlx.lookup import COMPARED, LONGEST, MOST, Index, Lookup, Match, Odds
from dflash_mlx.width import Calibration, Policy

from .choosers import Fixed, linear


def found(text: Sequence[int], count: int = 4) -> Match | None:
    index = Index()
    for token in text:
        index.add(token)
    return index.find(count)


def test_what_followed_the_longest_run_comes_next() -> None:
    # 2 3 stood behind 1 and behind 9; the text ends with 1 2 3.
    assert found([1, 2, 3, 4, 5, 6, 9, 2, 3, 7, 8, 1, 2, 3]) == ((4, 5, 6, 9), 3)


def test_the_latest_of_equal_runs_wins() -> None:
    assert found([1, 2, 3, 0, 1, 2, 4, 0, 5, 1, 2], 1) == ((4,), 2)


@pytest.mark.parametrize("text", [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 1]])
def test_nothing_is_copied_before_two_tokens_agree(text: list[int]) -> None:
    assert found(text) is None


def test_a_copy_that_reaches_the_end_goes_on_with_itself() -> None:
    assert found([7, 1, 2, 3, 1, 2, 3], 7) == ((1, 2, 3, 1, 2, 3, 1), 3)
    assert found([5, 5, 5], 3) == ((5, 5, 5), 2)


def test_runs_are_as_long_as_they_are_up_to_a_limit() -> None:
    for length in (2, 5, LONGEST, LONGEST + 9):
        text = [*range(100, 100 + length), 1, 0, *range(100, 100 + length)]
        assert found(text, 1) == ((1,), min(length, LONGEST))


def test_only_so_many_places_are_compared() -> None:
    """A token costs the same wherever it stands."""
    rare = [9, 8, 1, 2, 77]
    assert found([*rare, *[1, 2, 0] * (COMPARED - 1), 9, 8, 1, 2], 1) == ((77,), 4)
    assert found([*rare, *[1, 2, 0] * COMPARED, 9, 8, 1, 2], 1) == ((0,), 2)


def naive(text: list[int]) -> tuple[int, int]:
    """Length of the longest run that stood earlier, and the token behind its latest place."""
    for length in range(min(LONGEST, len(text) - 1), 1, -1):
        for end in range(len(text) - 1, length - 1, -1):
            if text[end - length : end] == text[-length:]:
                return length, text[end]
    return 0, 0


def test_all_of_a_text_by_a_plain_search() -> None:
    text = [(i * i // 3) % 7 for i in range(60)] * 2 + [(i * 5) % 4 for i in range(30)]
    index = Index()
    for i, token in enumerate(text):
        index.add(token)
        match = index.find(1)
        assert ((match.length, *match.tokens) if match else (0, 0)) == naive(text[: i + 1]), i


def test_odds_go_by_the_run_before_a_token() -> None:
    odds = Odds()
    match = Match((1, 2, 3, 4, 5), 2)
    tokens = odds.expected(match)
    assert tokens[0] == 1
    gains = [b - a for a, b in itertools.pairwise(tokens)]
    # Later places are as likely given that they are reached, or likelier.
    assert all(b / a > gains[0] for a, b in itertools.pairwise(gains))
    for _ in range(60):
        odds.learn(match, [1, 2, 0])
    learned = odds.expected(match)
    assert learned[1] > 1.9  # behind 2 tokens: always right
    assert learned[3] - learned[2] < 0.1  # behind 4: never
    assert learned[1] > tokens[1]
    assert Odds().expected(match) == tokens


def test_odds_learn_nothing_behind_the_first_difference() -> None:
    odds = Odds()
    odds.learn(Match((1, 2, 3), 2), [9, 2, 3])
    fresh, learned = Odds().expected(Match((1,), 3)), odds.expected(Match((1,), 3))
    assert fresh == learned
    assert odds.expected(Match((1,), 2))[1] < Odds().expected(Match((1,), 2))[1]


def test_a_lookup_follows_the_text_and_learns_from_every_round() -> None:
    """Whatever brought the tokens: what would have been copied is known."""
    lookup, text = Lookup(), [1, 2, 3, 4] * 3
    match = lookup.follow(text[:-1], text[-1])
    assert match is not None
    assert match.tokens[:5] == (1, 2, 3, 4, 1)
    assert len(match.tokens) == MOST
    before = lookup.expected(match)
    text += [1, 2, 3, 4, 1]
    again = lookup.follow(text[:-1], text[-1])
    assert again is not None
    assert again.tokens[0] == 2
    assert lookup.expected(match)[5] > before[5]


def policy(per_token: float = 0.1, draft: float = 0.2, ordered: bool = False) -> Policy:
    costs = Fixed(linear(4, per_token, draft))
    return Policy(costs, (1, 2, 3, 4), Calibration(3), ordered, (1, 2, 4, 8))


SURE = [float(n) for n in range(1, 10)]
POOR = [1 + 0.1 * n for n in range(9)]


def test_sure_copies_win_over_a_block_that_promises_less() -> None:
    for kind, width in ((SURE, 8), (POOR, 0)):
        assert policy().copy(kind, [0.6, 0.4, 0.2], 10, 99) == width


def test_a_block_that_is_as_sure_and_wide_wins() -> None:
    """Its tokens are there, and the next block comes with it."""
    assert policy().copy([1, 1.9, 2.8, 3.7], [1.0, 1.0, 1.0], 10, 99) == 0


def test_copies_are_no_wider_than_they_are_worth_and_wanted() -> None:
    assert policy(per_token=0.1).copy(SURE, [0.1] * 3, 10, 5) == 4
    assert policy(per_token=0.1).copy(SURE, [0.1] * 3, 10, 1) == 0
    assert policy(per_token=0.1).copy(SURE[:3], [0.1] * 3, 10, 99) == 2
    assert policy(per_token=0.9).copy([1, 1.95, 2.8, 3.5, 4, 4.4, 4.7, 4.9], [0.1] * 3, 9, 99) == 2


def test_the_draft_is_tried_before_copies_are() -> None:
    """Without a block at hand and without any round so far nothing is known of it."""
    fresh = policy()
    assert fresh.copy(SURE, [], 10, 99) == 0
    width = fresh.choose([0.9, 0.8, 0.7], 10, 99)
    fresh.learn([0.9, 0.8, 0.7], width - 1, width - 1)
    assert fresh.copy(SURE, [], 10, 99) == 8
    assert fresh.copy(POOR, [], 10, 99) == 0


def test_copies_do_not_change_what_the_draft_is_worth() -> None:
    """Else time would seem dear right behind a copied run, and blocks would be cut short."""
    used, other = policy(), policy()
    for each in (used, other):
        width = each.choose([0.9, 0.8, 0.7], 10, 99)
        each.learn([0.9, 0.8, 0.7], width - 1, width - 1)
    for _ in range(50):
        assert used.copy(SURE, [], 10, 99) == 8
        used.copied(7)
    assert used.choose([0.7, 0.6, 0.5], 10, 99) == other.choose([0.7, 0.6, 0.5], 10, 99)


def test_the_choice_sees_no_drawn_token_of_dflash_2() -> None:
    """Later places of a block depend on the tokens drawn before them."""
    for sure in (0.01, 0.99):
        chosen = policy(ordered=True).copy([1, 1.9, 2.7, 3.4], [0.5, sure, sure], 10, 99)
        assert chosen == policy(ordered=True).copy([1, 1.9, 2.7, 3.4], [0.5, 0.5, 0.5], 10, 99)
    free = {policy().copy([1, 1.9, 2.7, 3.4], [0.9, sure, sure], 10, 99) for sure in (0.01, 0.99)}
    assert len(free) == 2


def test_rounds_that_draft_nothing_have_times_of_their_own() -> None:
    curve = linear(4, 0.1, 0.2, host=0.05)
    assert curve.given(4, 1) == pytest.approx(1.35)
    assert curve.round(4, 1) == pytest.approx(1.55)
    costs = Corrected(curve)
    for _ in range(200):
        costs.time(4, 1, 2 * curve.given(4, 1), given=True)
        costs.time(4, 1, curve.round(4, 1))
    assert costs.given(4, 1) == pytest.approx(2 * curve.given(4, 1), rel=0.05)
    assert costs.round(4, 1) == pytest.approx(curve.round(4, 1), rel=0.05)
