"""Log-probabilities of tokens, for those who ask: made on the device, sent along with a round.

They are those of the target's distribution after logit bias, penalties and the mask of a guide,
and before filters (top-p, min-p, top-k) and temperature. mlx-lm reports the same, in
`generate_step` and from there in its server: its processors of logits come before, its sampler
with filters and temperature behind. OpenAI's interface does not say; without bias and penalties
there is nothing to tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

MOST = 20  # alternatives, as in OpenAI's interface


@dataclass(frozen=True)
class TokenLogprob:
    """How probable a generated token was.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability.
        top: the most probable tokens, the likeliest first, each as id and log-probability; tokens
            that a guide forbids are left out.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def pack(logits: mx.array, tokens: mx.array, count: int) -> mx.array:
    """What `unpack` reads, to travel in the array that brings a round to the host.

    Args:
        logits: float32 [rows, vocab], processed.
        tokens: int32 [rows], one of each row.
        count: how many of the most probable tokens to report besides.

    Returns:
        int32 [rows * (1 + 2 * count)]; floats keep their bits.
    """
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    parts = [mx.take_along_axis(logprobs, tokens[:, None], axis=-1).view(mx.int32)]
    count = min(count, logits.shape[-1])
    if count:
        ids = mx.argpartition(-logprobs, kth=count - 1, axis=-1)[:, :count]
        values = mx.take_along_axis(logprobs, ids, axis=-1)
        order = mx.argsort(-values, axis=-1)
        values = mx.take_along_axis(values, order, axis=-1)
        parts += [mx.take_along_axis(ids, order, axis=-1).astype(mx.int32), values.view(mx.int32)]
    return mx.concatenate(parts, axis=-1).reshape(-1)


def unpack(numbers: Sequence[int], rows: int, tokens: Sequence[int]) -> tuple[TokenLogprob, ...]:
    """The log-probabilities of the first rows' tokens.

    Args:
        numbers: what `pack` returned; empty if it was not asked.
        rows: of how many rows.
        tokens: the ids of at most so many rows.
    """
    if not numbers:
        return ()
    ids = np.array(numbers, np.int32).reshape(rows, -1)
    values, count = ids.view(np.float32), (ids.shape[1] - 1) // 2
    return tuple(
        TokenLogprob(token, float(value[0]), _likely(row[1 : 1 + count], value[1 + count :]))
        for token, row, value in zip(tokens, ids, values, strict=False)
    )


def _likely(ids: np.ndarray, logprobs: np.ndarray) -> tuple[tuple[int, float], ...]:
    pairs = zip(ids.tolist(), logprobs.tolist(), strict=True)
    return tuple((token, value) for token, value in pairs if value > -np.inf)
