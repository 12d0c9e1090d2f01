"""One round on the device: draft, verify, accept. Pure functions on arrays, so they compile.

Positions: the anchor stands at `start`, which is also the number of rows in the target's cache
and in the draft's context once the features of the last round have been added to it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from .accept import accept_greedy, accept_sampled
from .drafts.dflash import DFlashDraft
from .drafts.shortlist import Proposal, Shortlist, Wanted
from .kv import Scalar, State
from .logprobs import pack
from .sampling import Sampling, log_distribution, process, restrict
from .targets.base import Target


class Judged(NamedTuple):
    """What the target says behind each row of a pass.

    Attributes:
        said: its choice, int32 [rows], if sampling is greedy, else log p, float32 [rows, vocab].
        logits: float32 [rows, vocab], processed; None unless log-probabilities are wanted.
    """

    said: mx.array
    logits: mx.array | None


@dataclass(frozen=True, eq=False)
class PlainStep:
    """One token by the target alone: a round of width 1."""

    target: Target
    sampling: Sampling
    logprobs: int | None = None

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What tells this step from others of the same pair."""
        return (1, self.sampling, self.logprobs)

    def __call__(
        self, anchor: mx.array, start: Scalar, state: State, history: mx.array, key: mx.array
    ) -> tuple[mx.array, mx.array | None, State]:
        """Take int32 [1] at position `start` to int32 [2] (0 accepted, the next token).

        If wanted, log-probabilities follow. Also returns the anchor's features, None without taps,
        and the new state.
        """
        hidden, features, state = self.target.forward(anchor[None], start, state)
        rows = histories(history, anchor)
        judged = judge(self.target, hidden, rows, self.sampling, self.logprobs)
        token = self.target.ranks.decide(drawn(judged.said, self.sampling, key))
        packed = mx.concatenate([mx.zeros(1, mx.int32), token])
        return reported(packed, judged, self.logprobs), features, state


@dataclass(frozen=True, eq=False)
class DraftStep:
    """One round of DFlash with `width` verified tokens."""

    target: Target
    draft: DFlashDraft
    sampling: Sampling
    width: int
    seen: int = 1  # how many of a place's largest logits the draft gets at least
    logprobs: int | None = None

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What tells this step from others of the same pair."""
        return (self.width, self.sampling, self.logprobs)

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
            int32 [1 + width] as `accept` describes, and log-probabilities behind it if wanted;
            features [1, width, ...] of the verified rows; the new states of target and draft.
        """
        draft_key, accept_key = mx.random.split(key)
        context = self.extend(features, features_start, context)
        (drafted, logq, _), context = self.propose(anchor, start, context, history, draft_key)
        block = mx.concatenate([anchor, drafted])
        judged, verified, state = self.verify(block, start, state, history)
        packed = self.accept(drafted, logq, judged.said, accept_key)
        return reported(packed, judged, self.logprobs), verified, state, context

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
        wanted = self.draft.wanted(self.sampling)
        if wanted:
            wanted = wanted._replace(largest=max(wanted.largest, self.seen))
        hidden, logits, context = self.look(anchor, start, context, history, wanted)
        proposal = self.draft.propose(hidden, logits, anchor, self.sampling, key)
        return proposal._replace(drafted=self.target.ranks.decide(proposal.drafted)), context

    def look(
        self,
        anchor: mx.array,
        start: Scalar,
        context: State,
        history: mx.array,
        wanted: Wanted | None,
    ) -> tuple[mx.array, mx.array | Shortlist, State]:
        """What the draft chooses from, as `DFlashDraft.propose` takes it; the new context.

        If only some logits are `wanted`, and a kernel finds them faster, it does.
        """
        masks = mx.full(self.width - 1, self.draft.config.mask_token_id, mx.int32)
        block = self.target.embed_block(mx.concatenate([anchor, masks])[None])
        hidden, context = self.draft.forward(block, start, context)
        hidden = hidden[:, 1:]
        # The draft does not know its own block while it draws it, only what stands before.
        logits = self._logits(hidden, histories(history, anchor), wanted)
        return hidden[0], logits, context

    def verify(
        self, block: mx.array, start: Scalar, state: State, history: mx.array
    ) -> tuple[Judged, mx.array, State]:
        """What the target says behind each row of the block; its rows' features; the new state."""
        hidden, verified, state = self.target.forward(block[None], start, state)
        assert verified is not None
        rows = histories(history, block)
        return judge(self.target, hidden, rows, self.sampling, self.logprobs), verified, state

    def accept(
        self, drafted: mx.array, logq: mx.array | None, said: mx.array, key: mx.array
    ) -> mx.array:
        """What of the drafted tokens is kept, and the bonus, as `accept` packs them."""
        if self.sampling.greedy:
            packed = accept_greedy(drafted, said)
        else:
            assert logq is not None
            packed = accept_sampled(drafted, logq, said, key)
        return self.target.ranks.decide(packed)

    def _logits(
        self, hidden: mx.array, history: mx.array | None, wanted: Wanted | None
    ) -> mx.array | Shortlist:
        """What the draft chooses from, behind hidden states [1, width - 1, hidden_size]."""
        best = None
        if wanted and self.sampling.untouched:
            most = min(wanted.largest, self.target.vocab_size)
            rows = hidden[0].astype(self.target.dtype)
            best = self.target.best_drafts(rows, most, wanted.limit)
        if best is not None:
            return Shortlist(best.ids, self.draft.shape_logits(best.values))
        logits = self.target.draft_logits(hidden, self.draft.shape_logits)[0]
        return process(logits, history, self.sampling)


def judge(
    target: Target,
    hidden: mx.array,
    history: mx.array | None,
    sampling: Sampling,
    logprobs: int | None = None,
    allowed: mx.array | None = None,
) -> Judged:
    """What the target says behind each of the rows [1, L, hidden_size].

    Of the tokens that are `allowed`, as `restrict` takes them.
    """
    if sampling.greedy and sampling.untouched and logprobs is None and allowed is None:
        best = target.best(hidden[0])
        if best is not None:
            return Judged(best.ids[:, 0], None)
    logits = process(target.logits(hidden)[0], history, sampling)
    return judge_logits(logits, sampling, logprobs, allowed)


def judge_logits(
    logits: mx.array,
    sampling: Sampling,
    logprobs: int | None = None,
    allowed: mx.array | None = None,
) -> Judged:
    """What processed logits [rows, vocab] say of the tokens that are `allowed`."""
    if allowed is not None:
        logits = restrict(logits, allowed)
    greedy = sampling.greedy
    said = mx.argmax(logits, -1).astype(mx.int32) if greedy else log_distribution(logits, sampling)
    return Judged(said, None if logprobs is None else logits)


def choose(logits: mx.array, sampling: Sampling, key: mx.array) -> mx.array:
    """One token per row of processed logits [rows, vocab]: int32 [rows]."""
    return drawn(judge_logits(logits, sampling).said, sampling, key)


def drawn(said: mx.array, sampling: Sampling, key: mx.array) -> mx.array:
    """One token of each row that was judged: int32 [rows]."""
    return said if sampling.greedy else mx.random.categorical(said, key=key).astype(mx.int32)


def reported(packed: mx.array, judged: Judged, logprobs: int | None) -> mx.array:
    """A round as `accept` packs it, with the log-probabilities of its tokens if wanted."""
    if logprobs is None or judged.logits is None:
        return packed
    return mx.concatenate([packed, pack(judged.logits, packed[1:], logprobs)])


def histories(history: mx.array, block: mx.array) -> mx.array | None:
    """Per row of `block`, the last tokens up to and including it: int32 [L, len(history)]."""
    size = history.shape[0]
    if size == 0:
        return None
    tokens = mx.concatenate([history, block])
    return tokens[1 + mx.arange(block.shape[0])[:, None] + mx.arange(size)]
