"""The loss of a block's rows, with logits that never take more memory than they may.

A drafted token counts only if all before it are right, so early rows weigh more: by
exp(-(k - 1) / gamma) as published, or by D-PACE (arXiv 2605.18810), which weighs row k by how
probable the network finds the rows before and behind it right now.

The head is by far the widest layer. It is frozen, so its rows are taken a piece at a time: each
piece's loss and its slope at the hidden states are computed together, and its logits are
forgotten before the next piece. What trains the network is the product of hidden states and
slopes, whose gradient is that of the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .packing import Bools


@dataclass(frozen=True)
class Weighting:
    """How much each row of a block weighs.

    Attributes:
        kind: "exponential" or "dpace".
        gamma: rows behind which an exponential weight has fallen to 1/e.
        alpha: D-PACE: how far probabilities are lifted towards 1.
    """

    kind: str = "exponential"
    gamma: float = 4.0
    alpha: float = 0.5

    def weights(self, losses: mx.array, valid: mx.array) -> mx.array:
        """Per row, float32 [N, b - 1], without a gradient.

        Args:
            losses: cross-entropies [N, b - 1].
            valid: bool [N, b - 1].
        """
        if self.kind == "exponential":
            return valid * mx.exp(-mx.arange(losses.shape[1]) / self.gamma)
        likely = (1 - self.alpha) * mx.exp(-mx.stop_gradient(losses)) + self.alpha
        reached = mx.cumprod(mx.where(valid, likely, 1.0), axis=1) * valid
        return mx.cumsum(reached, axis=1, reverse=True) * valid

    def total(self, valid: Bools) -> float:
        """What the summed loss of these rows is divided by: weights, or for D-PACE blocks."""
        if self.kind == "dpace":
            return float(len(valid))
        return float((valid * np.exp(-np.arange(valid.shape[1]) / self.gamma)).sum())


class Candidates(NamedTuple):
    """The largest logits of each row: ids and values [N, b - 1, k]."""

    ids: mx.array
    logits: mx.array


class Scored(NamedTuple):
    """What the head says about a pack.

    Attributes:
        loss: float32, the weighted cross-entropies, summed.
        slope: its gradient at the hidden states [N, b - 1, hidden_size].
        weights: float32 [N, b - 1].
        hits: bool [N, b - 1], whether the most probable token is the true one.
        candidates: None unless asked for.
    """

    loss: mx.array
    slope: mx.array
    weights: mx.array
    hits: mx.array
    candidates: Candidates | None


Head = Callable[[mx.array], mx.array]  # hidden states [N, b - 1, H] to shaped logits, float32


def score(
    hidden: mx.array,
    labels: mx.array,
    valid: mx.array,
    head: Head,
    weighting: Weighting,
    *,
    blocks: int,
    candidates: int = 0,
) -> Scored:
    """Loss and slope of a pack, `blocks` blocks at a time.

    Args:
        hidden: [N, b - 1, hidden_size]; no gradient goes through it.
        labels: int32 [N, b - 1], as the head counts tokens.
        valid: bool [N, b - 1].
        candidates: how many of the largest logits to hand out.
    """

    def piece_loss(piece: mx.array, labels: mx.array, valid: mx.array) -> tuple[mx.array, ...]:
        logits = head(piece)
        true = mx.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        losses = mx.logsumexp(logits, axis=-1) - true
        weights = weighting.weights(losses, valid)
        hits = (mx.argmax(logits, axis=-1) == labels) & valid
        return (losses * weights).sum(), weights, hits, *_largest(logits, candidates)

    both = mx.value_and_grad(piece_loss)
    found: list[tuple[mx.array, ...]] = []
    hidden = mx.stop_gradient(hidden)
    for first in range(0, len(hidden), blocks):
        part = slice(first, first + blocks)
        piece = hidden[part]
        if found:
            # Not before the last piece is done, or several of them would be in memory at once.
            (piece,) = mx.depends([piece], list(found[-1][:2]))
        (loss, *more), slope = both(piece, labels[part], valid[part])
        found.append((loss, slope, *more))
    losses, *joined = zip(*found, strict=True)
    slope, weights, hits, *largest = (mx.concatenate(list(column)) for column in joined)
    loss = mx.stack(list(losses)).sum()
    return Scored(loss, slope, weights, hits, Candidates(*largest) if largest else None)


def blocks_at_once(logits_bytes: int, vocabulary: int, rows: int) -> int:
    """How many blocks of so many rows may have their logits in memory, one at least.

    A piece takes eight times its logits in float32, measured: they, their exponentials and their
    gradient, and the beginning of the next piece, as MLX computes ahead.
    """
    return max(1, logits_bytes // (8 * 4 * vocabulary * rows))


def tokens_per_round(hits: mx.array) -> mx.array:
    """Per block, the tokens that a round from its anchor would give: int32 [N]."""
    return 1 + mx.cumprod(hits.astype(mx.int32), axis=1).sum(axis=1)


def _largest(logits: mx.array, count: int) -> tuple[mx.array, ...]:
    if not count:
        return ()
    ids = mx.argpartition(mx.stop_gradient(logits), -count, axis=-1)[..., -count:]
    return ids.astype(mx.int32), mx.take_along_axis(logits, ids, axis=-1)
