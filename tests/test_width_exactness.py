"""Choosing widths leaves sampled text its distribution, if the choice never looks ahead.

A toy target ignores its history: in every round that gets to a place, the token there has to have
the place's distribution. DFlash 1 knows the distributions of a block before it draws from them;
DFlash 2 knows that of a place once the token before it is drawn.
"""

from collections.abc import Callable
from functools import cache

import mlx.core as mx
import numpy as np

from dflash_mlx.accept import accept_sampled
from dflash_mlx.costs import CostCurve
from dflash_mlx.width import Calibration, Policy

from .choosers import Fixed
from .test_accept import chi_square

VOCAB, BLOCK, DRAWS, CONTEXTS = 6, 4, 120_000, 8
PLACES = BLOCK - 1
Widths = Callable[[np.ndarray, np.ndarray], np.ndarray]


@cache
def target() -> mx.array:
    """log p [BLOCK, VOCAB]."""
    return normalised(1.2 * mx.random.normal((BLOCK, VOCAB), key=mx.random.key(3)))


def normalised(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


# The second token is dear, those behind it are not: whether it pays depends on them.
STEP = CostCurve((1, 2, 3, 4), (1,), ((1.0, 1.5, 1.65, 1.8),), (0.01,), 0.0)


def chosen(certainty: tuple[float, ...], ordered: bool) -> int:
    """The width that a new policy chooses."""
    policy = Policy(Fixed(STEP), range(1, BLOCK + 1), Calibration(PLACES), ordered)
    return max(1, policy.choose(certainty, 100, BLOCK))


def by_policy(certainty: np.ndarray, ordered: bool) -> np.ndarray:
    """Per draw, from the probabilities [DRAWS, PLACES] of the most probable tokens."""
    kinds, which = np.unique(certainty, axis=0, return_inverse=True)
    widths = np.array([chosen(tuple(map(float, row)), ordered) for row in kinds])
    assert len(set(widths)) > 2, "nothing to choose"
    return widths[which.reshape(-1)]


def worst(drafted: mx.array, logq: mx.array, widths: np.ndarray) -> float:
    """Over the places: what comes out of rounds of these widths against the target.

    Args:
        drafted: int32 [DRAWS, PLACES], drawn from logq [DRAWS, PLACES, VOCAB].
    """
    keys, logp = mx.random.split(mx.random.key(8), DRAWS), target()
    counts = np.zeros((BLOCK, VOCAB), int)
    for width in set(widths):
        w = int(width)

        def one(tokens: mx.array, rows: mx.array, key: mx.array, w: int = w) -> mx.array:
            return accept_sampled(tokens[: w - 1], rows[: w - 1], logp[:w], key)

        done = np.array(mx.vmap(one)(drafted, logq, keys))[widths == width]
        for place in range(w):
            reached = done[done[:, 0] >= place]
            counts[place] += np.bincount(reached[:, 1 + place], minlength=VOCAB)
    probs = np.exp(np.array(logp, np.float64))
    scores = [
        chi_square(found, p / p.sum())
        for found, p in zip(counts, probs, strict=True)
        if found.sum() > 500
    ]
    assert len(scores) > 2
    return max(scores)


def first_kind() -> tuple[mx.array, mx.array]:
    """Blocks of DFlash 1: drafted, log q. One of a few contexts decides on the distributions."""
    keys = mx.random.split(mx.random.key(5), 3)
    spread = mx.array([0.2, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0])[:, None, None]
    contexts = target()[:PLACES] + spread * mx.random.normal((CONTEXTS, PLACES, VOCAB), key=keys[0])
    logq = normalised(contexts)[mx.random.randint(0, CONTEXTS, (DRAWS,), key=keys[1])]
    return mx.random.categorical(logq, key=keys[2]).astype(mx.int32), logq


def second_kind() -> tuple[mx.array, mx.array]:
    """Blocks of DFlash 2: the token before a place decides on its distribution."""
    keys = mx.random.split(mx.random.key(6), 2 * PLACES + 1)
    spread = mx.array([0.2, 0.5, 1.0, 2.0, 3.0, 4.0])[:, None]
    before = mx.random.randint(0, VOCAB, (DRAWS,), key=keys[-1])  # the anchors
    drafted, rows = [], []
    for place in range(PLACES):
        noise = mx.random.normal((VOCAB, VOCAB), key=keys[2 * place])
        logq = normalised(target()[place] + spread * noise)[before]
        before = mx.random.categorical(logq, key=keys[2 * place + 1]).astype(mx.int32)
        drafted.append(before)
        rows.append(logq)
    return mx.stack(drafted, axis=1), mx.stack(rows, axis=1)


def certainty_of(logq: mx.array) -> np.ndarray:
    return np.exp(np.array(logq.max(axis=-1), np.float64)).round(5)


def test_the_policy_is_exact_for_dflash_1() -> None:
    drafted, logq = first_kind()
    assert worst(drafted, logq, by_policy(certainty_of(logq), ordered=False)) < 5


def test_the_policy_is_exact_for_dflash_2() -> None:
    drafted, logq = second_kind()
    assert worst(drafted, logq, by_policy(certainty_of(logq), ordered=True)) < 5


def test_looking_at_the_drawn_token_is_noticed() -> None:
    """The same policy, fed with the probability of the token that was drawn."""
    drafted, logq = first_kind()
    drawn = mx.exp(mx.take_along_axis(logq, drafted[..., None], axis=-1)[..., 0])
    widths = by_policy(np.array(drawn, np.float64).round(5), ordered=False)
    assert worst(drafted, logq, widths) > 8


def test_looking_at_later_places_of_dflash_2_is_noticed() -> None:
    """They are distributions, but which ones says what was drawn before them."""
    drafted, logq = second_kind()
    assert worst(drafted, logq, by_policy(certainty_of(logq), ordered=False)) > 8
