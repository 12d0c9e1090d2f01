"""From logits to the distribution that is sampled, in float32 and in mlx-lm's order.

mlx-lm (`sample_utils`) is the definition: bias and penalties on the logits, then top-p, min-p and
top-k on the untempered probabilities, the temperature last. Every function works on rows, one row
per position of a block, so that a whole block is processed at once; what row i sees of the
history is decided by its row of `history`, never by the tokens sampled from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import mlx.core as mx

from .errors import UsageError

COLDEST = 1e-6  # below, dividing by the temperature overflows float32 sooner or later


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The defaults choose the most probable token.

    Attributes:
        temperature: 0 is greedy; applied after the filters below, as mlx-lm does.
        top_p: keep the smallest set of tokens with at least this probability; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        min_p: keep tokens at least this fraction as probable as the most probable one.
        repetition_penalty: divides positive and multiplies negative logits of recent tokens.
        presence_penalty: subtracted once from the logits of recent tokens.
        frequency_penalty: subtracted per occurrence among recent tokens.
        penalty_context: how many recent tokens, prompt included, the penalties look at.
        logit_bias: pairs of token id and value added to its logit.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_context: int = 20
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, math.inf)
        if 0 < self.temperature < COLDEST:
            raise UsageError(f"temperature is {self.temperature}, expected 0 or at least {COLDEST}")
        _check("top_p", self.top_p, 0, 1)
        _check("top_k", self.top_k, 0, math.inf)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 0, math.inf)
        _check("presence_penalty", self.presence_penalty, -100, 100)
        _check("frequency_penalty", self.frequency_penalty, -100, 100)
        _check("penalty_context", self.penalty_context, 1, 4096)
        if self.repetition_penalty == 0:
            raise UsageError("repetition_penalty is 0, expected a positive number (1 is none)")
        if self.top_p == 0:
            raise UsageError("top_p is 0, expected more than 0 (1 keeps every token)")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """What `dataclasses.asdict` made, also after it was JSON."""
        bias = tuple((token, value) for token, value in fields["logit_bias"])
        return cls(**{**fields, "logit_bias": bias})

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is chosen."""
        return self.temperature == 0

    @property
    def history(self) -> int:
        """How many recent tokens the processing looks at."""
        neutral = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return 0 if neutral == (1.0, 0.0, 0.0) else self.penalty_context

    @property
    def untouched(self) -> bool:
        """Whether `process` leaves logits as they are."""
        return not self.history and not self.logit_bias

    def check_vocabulary(self, size: int) -> None:
        """Refuse biased ids outside a vocabulary of `size` tokens."""
        wrong = [i for i, _ in self.logit_bias if not 0 <= i < size]
        if wrong:
            raise UsageError(f"logit_bias names token {wrong[0]}; ids go from 0 to {size - 1}")


def _check(name: str, value: float, low: float, high: float) -> None:
    if math.isnan(value) or not low <= value <= high:
        limits = f"at least {low}" if high == math.inf else f"{low} to {high}"
        raise UsageError(f"{name} is {value}, expected {limits}")


def process(logits: mx.array, history: mx.array | None, sampling: Sampling) -> mx.array:
    """Apply bias and penalties.

    Args:
        logits: [rows, vocab], any floating type.
        history: int32 [rows, sampling.history], each row the tokens before its position, the
            latest last; -1 where there are fewer. None if `sampling.history` is 0.

    Returns:
        float32 [rows, vocab].
    """
    logits = logits.astype(mx.float32)
    if sampling.logit_bias:
        ids, values = zip(*sampling.logit_bias, strict=True)
        logits = logits.at[:, mx.array(ids)].add(mx.array(values, mx.float32))
    if history is None or not sampling.history:
        return logits
    known = history >= 0
    # The latest token stands in where history is short: writing it twice changes nothing.
    tokens = mx.where(known, history, history[:, -1:])
    if sampling.repetition_penalty != 1:
        seen = mx.take_along_axis(logits, tokens, axis=-1)
        factor = sampling.repetition_penalty
        seen = mx.where(seen < 0, seen * factor, seen / factor)
        logits = mx.put_along_axis(logits, tokens, seen, axis=-1)
    if sampling.presence_penalty:
        seen = mx.take_along_axis(logits, tokens, axis=-1) - sampling.presence_penalty
        logits = mx.put_along_axis(logits, tokens, seen, axis=-1)
    if sampling.frequency_penalty:
        rows = mx.arange(logits.shape[0])[:, None]
        logits = logits.at[rows, tokens].subtract(sampling.frequency_penalty * known)
    return logits


def restrict(logits: mx.array, allowed: mx.array) -> mx.array:
    """Rule tokens out.

    Args:
        logits: float32 [rows, vocab].
        allowed: uint32 [rows, ceil(vocab / 32)]: bit i % 32 of word i // 32 stands for token i.

    Returns:
        float32 [rows, vocab], -inf for what is not allowed.
    """
    bits = (allowed[:, :, None] >> mx.arange(32, dtype=mx.uint32)) & 1
    bits = bits.reshape(logits.shape[0], -1)[:, : logits.shape[1]]
    return mx.where(bits.astype(mx.bool_), logits, -mx.inf)


def log_distribution(logits: mx.array, sampling: Sampling) -> mx.array:
    """Log-probabilities that sampling draws from, after filters and temperature.

    Args:
        logits: float32 [rows, vocab], processed.
        sampling: with a temperature above 0.

    Returns:
        float32 [rows, vocab], normalised per row, -inf for tokens filtered out.
    """
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    if 0 < sampling.top_p < 1:
        logprobs = _top_p(logprobs, sampling.top_p)
    if sampling.min_p > 0:
        floor = mx.max(logprobs, axis=-1, keepdims=True) + math.log(sampling.min_p)
        logprobs = mx.where(logprobs < floor, -mx.inf, logprobs)
    if 0 < sampling.top_k < logits.shape[-1]:
        logprobs = _top_k(logprobs, sampling.top_k)
    logprobs = logprobs * (1 / sampling.temperature)
    return logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)


def _top_p(logprobs: mx.array, top_p: float) -> mx.array:
    ordered = mx.sort(logprobs, axis=-1)
    probs = mx.exp(ordered)
    above = mx.cumsum(probs, axis=-1, reverse=True, inclusive=False)
    total = above[..., :1] + probs[..., :1]
    dropped = (above >= top_p * total).sum(axis=-1, keepdims=True)
    floor = mx.take_along_axis(ordered, dropped, axis=-1)
    return mx.where(logprobs < floor, -mx.inf, logprobs)


def _top_k(logprobs: mx.array, top_k: int) -> mx.array:
    # By rank, not by value: exactly k tokens stay, as in mlx-lm.
    out = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[..., top_k:]
    return mx.put_along_axis(logprobs, out, mx.array(-mx.inf), axis=-1)
