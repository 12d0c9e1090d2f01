"""Rounds that end with the next draft: verify, accept, extend the context, draft ahead.

How many tokens of a block are worth verifying shows in the draft's own probabilities, and the
host has to know them before it can choose a width. So a round verifies the block that the round
before it drafted, and drafts the next one behind the token it ends with, whose place only the
device knows by then. One array brings tokens and probabilities to the host: one transfer a round.
The draft always runs its whole block; what varies is how much of it is verified.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from .drafts.dflash import DFlashDraft
from .kv import Scalar, State
from .sampling import Sampling
from .step import DraftStep, reported
from .targets.base import Target

SEEN = 8  # logits per place that stand for all, where a kernel finds the largest
SCALE = 1 << 24  # probabilities travel as int32, in steps of float32's resolution near 1


class Block(NamedTuple):
    """A drafted block: int32 [block_size - 1], and log q of each place where it was drawn."""

    drafted: mx.array
    logq: mx.array | None


class Ahead(NamedTuple):
    """What a round leaves behind.

    Attributes:
        packed: int32 [1 + width + block_size - 1]: accepted and the round's tokens as `accept`
            describes them, then the probabilities of the next block's places in units of 1 /
            SCALE. Where nothing was verified, these alone. Log-probabilities, if wanted, stand
            between both.
        block: the next block.
        state: the target's cache; None where nothing was verified.
        context: the draft's cache.
    """

    packed: mx.array
    block: Block
    state: State | None
    context: State


@dataclass(frozen=True, eq=False)
class AheadStep:
    """A round that verifies `width` tokens, the anchor among them.

    Width 0 verifies nothing: it drafts the first block of an answer.
    """

    target: Target
    draft: DFlashDraft
    sampling: Sampling
    width: int
    logprobs: int | None = None

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What tells this step from others of the same pair."""
        return ("ahead", self.width, self.sampling, self.logprobs)

    def __call__(
        self,
        anchor: mx.array,
        start: Scalar,
        context: State,
        history: mx.array,
        key: mx.array,
        state: State | None = None,
        block: Block | None = None,
    ) -> Ahead:
        """Verify, accept, extend, draft ahead.

        Args:
            anchor: int32 [1], the last committed token.
            start: its position, the number of rows in the context.
            context: the draft's cache.
            history: int32 [sampling.history], the tokens before the anchor, -1 where none.
            key: random key of this round; the next one's differs in the position alone.
            state: the target's cache.
            block: what was drafted behind the anchor.
        """
        size = self.draft.config.block_size
        whole = DraftStep(self.target, self.draft, self.sampling, size, SEEN, self.logprobs)
        done = mx.zeros(0, mx.int32)
        if block is not None and state is not None:
            drafted, logq = block.drafted[: self.width - 1], block.logq
            logq = None if logq is None else logq[: self.width - 1]
            verified = mx.concatenate([anchor, drafted])
            judged, features, state = whole.verify(verified, start, state, history)
            done = whole.accept(drafted, logq, judged.said, mx.random.split(key)[1])
            # Rejected rows trail; the block drafted next is at least as wide and overwrites them.
            context = whole.extend(features, start, context)
            kept, tokens = done[0] + 1, done[1:]
            done = reported(done, judged, self.logprobs)
            history = mx.concatenate([history, anchor, tokens])[kept + mx.arange(history.size)]
            anchor, start = tokens[kept - 1][None], start + kept
            key = key + mx.array([0, 1], mx.uint32) * kept.astype(mx.uint32)
        proposal, context = whole.propose(anchor, start, context, history, mx.random.split(key)[0])
        certain = mx.round(proposal.certainty * SCALE).astype(mx.int32)
        packed = mx.concatenate([done, certain])
        return Ahead(packed, Block(proposal.drafted, proposal.logq), state, context)
