"""Acceptance: the rules, and that sampled output has the target's own distribution."""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from dflash_mlx import accept
from dflash_mlx.accept import accept_greedy, accept_sampled
from dflash_mlx.sampling import Sampling, log_distribution

VOCAB, WIDTH, DRAWS = 8, 4, 200_000
FILTERS = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 4},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.4, "min_p": 0.15},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 5, "min_p": 0.05},
]


@pytest.mark.parametrize("accepted", range(5))
def test_greedy_keeps_the_leading_matches(accepted: int) -> None:
    chosen = mx.array([5, 6, 7, 8, 9])
    drafted = mx.array([5, 6, 7, 8])
    if accepted < 4:
        drafted[accepted] = 0
    assert accept_greedy(drafted, chosen).tolist() == [accepted, 5, 6, 7, 8, 9]


def test_greedy_ignores_matches_behind_a_miss() -> None:
    assert accept_greedy(mx.array([1, 0, 3]), mx.array([1, 2, 3, 4])).tolist()[0] == 1


def distributions(setting: dict[str, Any], seed: int = 0) -> tuple[mx.array, mx.array]:
    """log q [WIDTH - 1, VOCAB] of the draft, log p [WIDTH, VOCAB] of the target."""
    keys = mx.random.split(mx.random.key(seed))
    sampling = Sampling(**setting)
    q = log_distribution(1.5 * mx.random.normal((WIDTH - 1, VOCAB), key=keys[0]), sampling)
    p = log_distribution(1.5 * mx.random.normal((WIDTH, VOCAB), key=keys[1]), sampling)
    return q, p


def draw_rounds(logq: mx.array, logp: mx.array, seed: int = 1) -> np.ndarray:
    """DRAWS rounds, each [1 + WIDTH]."""

    def one(key: mx.array) -> mx.array:
        draft_key, accept_key = mx.random.split(key)
        drafted = mx.random.categorical(logq, key=draft_key).astype(mx.int32)
        return accept_sampled(drafted, logq, logp, accept_key)

    return np.array(mx.vmap(one)(mx.random.split(mx.random.key(seed), DRAWS)))


def chi_square(counts: np.ndarray, probs: np.ndarray) -> float:
    """z-score of the chi-square statistic against its mean and deviation."""
    expected = probs * counts.sum()
    assert (counts[probs == 0] == 0).all(), "a token that the filters exclude came out"
    kept = expected > 5
    statistic = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    freedom = int(kept.sum()) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


def worst_score(logq: mx.array, logp: mx.array) -> float:
    """Over all positions: tokens drawn there against the target's distribution.

    The toy target ignores its history, so the token at position i has distribution p_i in every
    round that gets that far.
    """
    done = draw_rounds(logq, logp)
    scores = []
    for place in range(WIDTH):
        reached = done[done[:, 0] >= place]
        if len(reached) > 500:
            counts = np.bincount(reached[:, 1 + place], minlength=VOCAB)
            probs = np.exp(np.array(logp[place], np.float64))
            scores.append(chi_square(counts, probs / probs.sum()))
    assert len(scores) >= 2
    return max(scores)


@pytest.mark.parametrize("setting", FILTERS, ids=str)
def test_sampling_is_exact(setting: dict[str, Any]) -> None:
    assert worst_score(*distributions(setting)) < 5


def p_instead_of_the_residual(logp: mx.array, *_: Any) -> mx.array:
    return logp


def always_the_residual(right: Callable[..., mx.array], *args: Any) -> mx.array:
    logp, logq, accepted = args
    return right(logp, logq, mx.minimum(accepted, logq.shape[0] - 1))


@pytest.mark.parametrize(
    "wrong",
    [p_instead_of_the_residual, partial(always_the_residual, accept._residual)],
    ids=["target's distribution after a rejection", "residual without a rejection"],
)
def test_a_wrong_residual_is_noticed(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "_residual", wrong)
    assert worst_score(*distributions(FILTERS[0])) > 8


def test_a_draft_equal_to_the_target_is_always_accepted() -> None:
    """p - q is then zero or rounding: the guarded residual never makes NaN of it."""
    _, logp = distributions({"temperature": 1.0})
    done = draw_rounds(logp[:-1], logp)
    assert (done[:, 0] == WIDTH - 1).mean() > 0.999
    assert done[:, 1:].min() >= 0
    assert done[:, 1:].max() < VOCAB


def test_a_token_the_target_excludes_is_rejected() -> None:
    logq = mx.log(mx.array([[1.0, 0.0]]))
    logp = mx.log(mx.array([[0.0, 1.0], [0.0, 1.0]]))
    for seed in range(20):
        out = accept_sampled(mx.array([0]), logq, logp, mx.random.key(seed)).tolist()
        assert out[:2] == [0, 1]
