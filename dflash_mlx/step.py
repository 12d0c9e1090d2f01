"""One round on the device: draft, verify, accept. Pure functions on arrays, so they compile.

Positions: the anchor stands at `start`, which is also the number of rows in the target's cache
and in the draft's context once the features of the last round have been added to it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import mlx.core as mx

from .accept import accept_greedy, accept_sampled
from .drafts.dflash import DFlashDraft
from .drafts.shortlist import Proposal, Shortlist
from .kv import Scalar, State
from .sampling import Sampling, log_distribution, process
from .targets.base import Target


@dataclass(frozen=True, eq=False)
class PlainStep:
    """One token by the target alone: a round of width 1."""

    target: Target
    sampling: Sampling

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What tells this step from others of the same pair."""
        return (1, self.sampling)

    def __call__(
        self, anchor: mx.array, start: Scalar, state: State, history: mx.array, key: mx.array
    ) -> tuple[mx.array, mx.array | None, State]:
        """Take int32 [1] at position `start` to int32 [2] (0 accepted, the next token).

        Also returns the anchor's features, None without taps, and the new state.
        """
        hidden, features, state = self.target.forward(anchor[None], start, state)
        rows = histories(history, anchor)
        if self.sampling.greedy:
            token = most_probable(self.target, hidden, rows, self.sampling)
        else:
            logits = process(self.target.logits(hidden)[0], rows, self.sampling)
            token = choose(logits, self.sampling, key)
        return mx.concatenate([mx.zeros(1, mx.int32), token]), features, state


@dataclass(frozen=True, eq=False)
class DraftStep:
    """One round of DFlash with `width` verified tokens."""

    target: Target
    draft: DFlashDraft
    sampling: Sampling
    width: int
    seen: int = 1  # how many of a place's largest logits the draft gets at least

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What tells this step from others of the same pair."""
        return (self.width, self.sampling)

    def __call__(
        self,
        anchor: mx.array,
        start: Scalar,
        state: State,
        context: State,
        features: mx.array | None,
        features_start: Scalar,
        history: mx.array,
        key: mx.array,
    ) -> tuple[mx.array, mx.array, State, State]:
        """Draft behind the anchor, verify, accept.

        Args:
            anchor: int32 [1], the last committed token.
            start: its position.
            state: the target's cache.
            context: the draft's cache.
            features: [1, L, taps * hidden_size] not yet in the context; rows that were rejected
                may trail, the block overwrites them.
            features_start: position of their first row.
            history: int32 [sampling.history], the tokens before the anchor, -1 where none.
            key: random key of this round.

        Returns:
            int32 [1 + width] as `accept` describes; features [1, width, ...] of the verified
            rows; the new states of target and draft.
        """
        draft_key, accept_key = mx.random.split(key)
        context = self.extend(features, features_start, context)
        (drafted, logq, _), context = self.propose(anchor, start, context, history, draft_key)
        block = mx.concatenate([anchor, drafted])
        judged, verified, state = self.verify(block, start, state, history)
        packed = self.accept(drafted, logq, judged, accept_key)
        return packed, verified, state, context

    def extend(self, features: mx.array | None, features_start: Scalar, context: State) -> State:
        """Add the features of what the last round kept to the draft's context."""
        if features is None:
            return context
        extended: State = self.draft.extend(features, features_start, context)
        return extended

    def propose(
        self, anchor: mx.array, start: Scalar, context: State, history: mx.array, key: mx.array
    ) -> tuple[Proposal, State]:
        """Tokens for the `width - 1` places behind the anchor; the new context."""
        masks = mx.full(self.width - 1, self.draft.config.mask_token_id, mx.int32)
        block = self.target.embed_block(mx.concatenate([anchor, masks])[None])
        hidden, context = self.draft.forward(block, start, context)
        hidden = hidden[:, 1:]
        # The draft does not know its own block while it draws it, only what stands before.
        logits = self._logits(hidden.astype(self.target.dtype), histories(history, anchor))
        return self.draft.propose(hidden[0], logits, anchor, self.sampling, key), context

    def verify(
        self, block: mx.array, start: Scalar, state: State, history: mx.array
    ) -> tuple[mx.array, mx.array, State]:
        """What the target says, as `judge` has it; the features of the rows; the new state."""
        judged, features, state = judge(self.target, self.sampling, block, start, state, history)
        assert features is not None
        return judged, features, state

    def accept(
        self, drafted: mx.array, logq: mx.array | None, judged: mx.array, key: mx.array
    ) -> mx.array:
        """What of the drafted tokens is kept, and the bonus, as `accept` packs them."""
        if self.sampling.greedy:
            return accept_greedy(drafted, judged)
        assert logq is not None
        return accept_sampled(drafted, logq, judged, key)

    def _logits(self, hidden: mx.array, history: mx.array | None) -> mx.array | Shortlist:
        """What the draft chooses from, behind hidden states [1, width - 1, hidden_size]."""
        wanted = self.draft.wanted(self.sampling) if self.sampling.untouched else None
        best = None
        if wanted:
            most = min(self.seen, self.target.vocab_size)
            best = self.target.best(hidden[0], max(wanted.largest, most), wanted.limit)
        if best is not None:
            return Shortlist(best.ids, self.draft.shape_logits(best.values))
        logits = self.draft.shape_logits(self.target.head(hidden))[0]
        return process(logits, history, self.sampling)


def judge(
    target: Target,
    sampling: Sampling,
    block: mx.array,
    start: Scalar,
    state: State,
    history: mx.array,
) -> tuple[mx.array, mx.array | None, State]:
    """What the target says behind each row of a block [width], its anchor at `start`.

    That is its choice, int32 [width], if sampling is greedy, else log p, float32 [width, vocab].
    Also returns the features of the rows, None without taps, and the new state.
    """
    hidden, features, state = target.forward(block[None], start, state)
    rows = histories(history, block)
    if sampling.greedy:
        return most_probable(target, hidden, rows, sampling), features, state
    logits = process(target.logits(hidden)[0], rows, sampling)
    return log_distribution(logits, sampling), features, state


def most_probable(
    target: Target, hidden: mx.array, history: mx.array | None, sampling: Sampling
) -> mx.array:
    """The target's greedy choice behind each of the rows [1, L, hidden_size]: int32 [L]."""
    best = target.best(hidden[0]) if sampling.untouched else None
    if best is not None:
        return best.ids[:, 0]
    logits = process(target.logits(hidden)[0], history, sampling)
    return mx.argmax(logits, axis=-1).astype(mx.int32)


def choose(logits: mx.array, sampling: Sampling, key: mx.array) -> mx.array:
    """One token per row of processed logits [rows, vocab]: int32 [rows]."""
    if sampling.greedy:
        return mx.argmax(logits, axis=-1).astype(mx.int32)
    return mx.random.categorical(log_distribution(logits, sampling), key=key).astype(mx.int32)


def histories(history: mx.array, block: mx.array) -> mx.array | None:
    """Per row of `block`, the last tokens up to and including it: int32 [L, len(history)]."""
    size = history.shape[0]
    if size == 0:
        return None
    tokens = mx.concatenate([history, block])
    return tokens[1 + mx.arange(block.shape[0])[:, None] + mx.arange(size)]
