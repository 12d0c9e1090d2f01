"""Which drafted tokens the target keeps: pure functions on arrays.

Row i of the target's output belongs to the position of drafted token i; one row more belongs to
the bonus. All functions return int32 [1 + width]: the number of accepted tokens, then the tokens
of the round, of which the first `accepted + 1` count. One array, so that one transfer brings a
round to the host.
"""

from __future__ import annotations

import mlx.core as mx


def accept_greedy(drafted: mx.array, chosen: mx.array) -> mx.array:
    """Keep drafted tokens as long as they are the target's own choice.

    Args:
        drafted: int32 [width - 1].
        chosen: int32 [width], the target's most probable token at each position.

    Returns:
        int32 [1 + width]: accepted, tokens.
    """
    accepted = _leading(drafted == chosen[:-1])
    # Accepted drafts equal the target's choices, and the bonus is the choice behind them.
    return mx.concatenate([accepted[None], chosen.astype(mx.int32)])


def accept_sampled(
    drafted: mx.array, draft_logq: mx.array, target_logp: mx.array, key: mx.array
) -> mx.array:
    """Exact rejection sampling (arXiv 2211.17192, algorithm 1; appendix A.1 for the proof).

    Token x drawn from q is kept with probability min(1, p(x) / q(x)); the first rejected
    position is drawn again from max(p - q, 0), normalised. With no rejection the bonus is drawn
    from p. Every token then has the target's distribution p.

    Args:
        drafted: int32 [width - 1], drawn from the draft's distributions.
        draft_logq: float32 [width - 1, vocab], log q.
        target_logp: float32 [width, vocab], log p after the same processing.
        key: random key.

    Returns:
        int32 [1 + width]: accepted, tokens.
    """
    coin_key, bonus_key = mx.random.split(key)
    log_ratio = _at(target_logp[:-1], drafted) - _at(draft_logq, drafted)
    coins = mx.random.uniform(shape=drafted.shape, key=coin_key)
    accepted = _leading(mx.log(coins) < log_ratio)
    logp = mx.take(target_logp, accepted, axis=0)
    bonus = mx.random.categorical(_residual(logp, draft_logq, accepted), key=bonus_key)
    return _packed(drafted, accepted, bonus)


def accept_given(drafted: mx.array, target_logp: mx.array, key: mx.array) -> mx.array:
    """`accept_sampled` where the tokens were not drawn but follow from the text before them.

    q is then 1 at the token and 0 elsewhere: x is kept with probability p(x), and a rejected
    position is drawn from p without x, normalised.

    Args:
        drafted: int32 [width - 1].
        target_logp: float32 [width, vocab], log p.
        key: random key.

    Returns:
        int32 [1 + width]: accepted, tokens.
    """
    coin_key, bonus_key = mx.random.split(key)
    coins = mx.random.uniform(shape=drafted.shape, key=coin_key)
    accepted = _leading(mx.log(coins) < _at(target_logp[:-1], drafted))
    logp = mx.take(target_logp, accepted, axis=0)
    # Behind the last drafted token none is rejected: -1 is nobody's id.
    rejected = mx.take(mx.concatenate([drafted, mx.array([-1], drafted.dtype)]), accepted)
    bonus = mx.random.categorical(_without(logp, rejected), key=bonus_key)
    return _packed(drafted, accepted, bonus)


def _without(logp: mx.array, token: mx.array) -> mx.array:
    """Log of p without a token; log p where nothing would be left, as rounding can have it."""
    left = mx.where(mx.arange(logp.shape[0]) == token, -mx.inf, logp)
    return mx.where(left.max() > -mx.inf, left, logp)


def _packed(drafted: mx.array, accepted: mx.array, bonus: mx.array) -> mx.array:
    kept = mx.arange(drafted.shape[0]) < accepted
    tokens = mx.concatenate([mx.where(kept, drafted, bonus), bonus[None]])
    return mx.concatenate([accepted[None], tokens.astype(mx.int32)])


def _residual(logp: mx.array, draft_logq: mx.array, accepted: mx.array) -> mx.array:
    """Log of max(p - q, 0) at the rejected position; log p if none was rejected."""
    if draft_logq.shape[0] == 0:
        return logp
    rejected = accepted < draft_logq.shape[0]
    row = mx.minimum(accepted, draft_logq.shape[0] - 1)
    left = mx.maximum(mx.exp(logp) - mx.exp(mx.take(draft_logq, row, axis=0)), 0)
    # Rounding can leave nothing of p - q where p equals q; p itself is then the right draw.
    return mx.where(rejected & (left.sum() > 0), mx.log(left), logp)


def _leading(kept: mx.array) -> mx.array:
    """How many of the first entries hold, int32 scalar."""
    return mx.cumprod(kept.astype(mx.int32)).sum()


def _at(rows: mx.array, tokens: mx.array) -> mx.array:
    return mx.take_along_axis(rows, tokens[:, None], axis=-1)[:, 0]
