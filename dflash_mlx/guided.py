"""Rounds under a guide: the grammar is walked along drafted tokens before they are verified.

What is sampled. Let p_i be the target's distribution at a place i behind the tokens before it,
made as always but for one thing: the logits of tokens that the grammar forbids there are -inf
before filters and temperature. Plain guided decoding draws each token from its p_i, and so does
this, at any temperature:

- The draft's pass is over before a token is drawn. The host then draws place by place: token i
  from q_i, the draft's distribution among its candidates that are allowed behind tokens 1 to
  i - 1; where the grammar leaves no choice, the forced token is drafted, with q_i = 1.
- So q_i depends on tokens before i alone, and so does whether a block goes on: it ends where none
  of the candidates is allowed, and behind a token that ends the text. Nothing that is decided
  about place i looks at the token drawn there.
- The target's pass gives every p_i, each masked by what the grammar allows behind the drafted
  tokens before i. Rejection sampling (`accept`) with exactly these q_i and p_i gives token i the
  distribution p_i, whatever q_i is. Rows behind the first rejected token are not used; only they
  have masks of tokens that did not come.

Greedy, the same holds with most probable tokens in place of distributions.

A guided round needs two transfers: the candidates to the host, then what came of them. Where the
grammar forces a whole block the draft does not run, and there is one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from .accept import accept_greedy, accept_sampled
from .along import Candidates, Path, walk
from .decode import Decoder, DraftDecoder, Result, read, result
from .drafts.dflash import DFlashDraft
from .guide import Matcher
from .kv import Scalar, State
from .loading import Pair
from .options import Options
from .sampling import Sampling
from .session import Session
from .step import DraftStep, histories, judge, reported
from .targets.base import Target


@dataclass(frozen=True, eq=False)
class CandidateStep:
    """The draft's part of a guided round: a pass over a block of `width` tokens."""

    target: Target
    draft: DFlashDraft
    sampling: Sampling
    width: int

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What tells this step from others of the same pair."""
        return ("candidates", self.width, self.sampling)

    def __call__(
        self, anchor: mx.array, start: Scalar, context: State, history: mx.array, key: mx.array
    ) -> tuple[mx.array, mx.array, mx.array | None, State]:
        """Ids and scores as `shortlist.Candidates`, noise to draw with, and the new context.

        Args:
            anchor: int32 [1], the last committed token.
            start: its position, the number of rows in the context.
            context: the draft's cache.
            history: int32 [sampling.history], the tokens before the anchor, -1 where none.
            key: random key.
        """
        step = DraftStep(self.target, self.draft, self.sampling, self.width)
        wanted = self.draft.eligible()
        hidden, logits, context = step.look(anchor, start, context, history, wanted)
        ids, scores = self.draft.candidates(hidden, logits, anchor)
        noise = None if self.sampling.greedy else mx.random.gumbel(ids.shape, key=key)
        return ids, scores, noise, context


@dataclass(frozen=True, eq=False)
class VerifyStep:
    """The target's part of a guided round: a pass over the anchor and what was drafted."""

    target: Target
    sampling: Sampling
    width: int
    logprobs: int | None = None

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What tells this step from others of the same pair."""
        return ("guided", self.width, self.sampling, self.logprobs)

    def __call__(
        self,
        block: mx.array,
        ids: mx.array | None,
        logq: mx.array | None,
        allowed: mx.array,
        start: Scalar,
        state: State,
        history: mx.array,
        key: mx.array,
    ) -> tuple[mx.array, mx.array | None, State]:
        """Verify and accept.

        Args:
            block: int32 [width], the anchor and the drafted tokens.
            ids, logq: [width - 1, k], what these were drawn among and from; None if sampling is
                greedy or nothing was drafted.
            allowed: uint32 [width, words], what may come behind each row.
            start: position of the anchor.
            state: the target's cache.
            history: int32 [sampling.history], the tokens before the anchor, -1 where none.
            key: random key.

        Returns:
            int32 [1 + width] as `accept` describes, and log-probabilities behind it if wanted;
            features [1, width, ...], None without taps; the new state.
        """
        hidden, features, state = self.target.forward(block[None], start, state)
        rows = histories(history, block)
        judged = judge(self.target, hidden, rows, self.sampling, self.logprobs, allowed)
        if self.sampling.greedy:
            packed = accept_greedy(block[1:], judged.said)
        else:
            everywhere = mx.full((self.width - 1, judged.said.shape[1]), -mx.inf)
            if ids is not None and logq is not None:
                everywhere = mx.put_along_axis(everywhere, ids, logq, axis=-1)
            packed = accept_sampled(block[1:], everywhere, judged.said, key)
        return reported(self.target.ranks.decide(packed), judged, self.logprobs), features, state


class GuidedPlainDecoder(Decoder):
    """The target alone; the host has to know each token before it knows what may follow."""

    def __init__(
        self, pair: Pair, session: Session, options: Options, seed: int, matcher: Matcher
    ) -> None:
        super().__init__(pair, session, options, seed)
        target = pair.by_kernels[0] if pair.kernels.mode == "on" else pair.target
        self._step = VerifyStep(target, options.sampling, 1, options.logprobs)
        self._matcher = matcher

    def next(self, anchor: int, room: int) -> Result:
        path = Path([], self._matcher.allowed()[None])
        packed, _ = verify(self, self._step, anchor, path, self.key(self.session.cache.length))
        return follow(self._matcher, result(read(packed), 1), room)

    def commit(self, anchor: int, tokens: Sequence[int]) -> None:
        self.session.commit([anchor], None)


class GuidedDecoder(DraftDecoder):
    """DFlash along a grammar.

    Blocks are as wide as without a guide, or narrower where the grammar forbids what the draft
    would say.
    """

    def __init__(
        self, pair: Pair, session: Session, options: Options, seed: int, matcher: Matcher
    ) -> None:
        self._matcher = matcher
        super().__init__(pair, session, options, seed)

    def next(self, anchor: int, room: int) -> Result:
        return follow(self._matcher, super().next(anchor, room), room)

    def _step_of(self, target: Target, draft: DFlashDraft | None) -> CandidateStep:
        assert draft is not None
        return CandidateStep(target, draft, self.sampling, self._width)

    def _round(self, anchor: int, step: Any) -> Result:
        draft_key, accept_key = mx.random.split(self.key(self.session.cache.length))
        self.session.flush()
        ask = partial(self._candidates, anchor, step, draft_key)
        path = walk(self._matcher, self._width - 1, ask, self.sampling)
        # Where the draft is asked follows from the grammar alone; what is drawn, rank 0 decides.
        path = path.along(self.pair.ranks.share(path.tokens))
        verifying = VerifyStep(step.target, self.sampling, 1 + len(path.drawn), self.logprobs)
        packed, self._verified = verify(self, verifying, anchor, path, accept_key)
        return result(read(packed), verifying.width)

    def _candidates(self, anchor: int, step: CandidateStep, key: mx.array) -> Candidates:
        context = self._context
        ids, scores, noise, state = self.run(
            step,
            mx.array([anchor], mx.int32),
            self.scalar(context.length),
            context.begin(context.length, self._width, self.compiled),
            self.history(),
            key,
        )
        context.update(state)
        mx.eval(ids, scores, noise)
        return Candidates(
            np.array(ids), np.array(scores), None if noise is None else np.array(noise)
        )


def verify(
    decoder: Decoder, step: VerifyStep, anchor: int, path: Path, key: mx.array
) -> tuple[mx.array, mx.array | None]:
    """Issue the target's part of a round: what comes of it, and the features of its rows."""
    cache, start = decoder.session.cache, decoder.session.cache.length
    sampled = path.drawn and not decoder.sampling.greedy
    ids, logq = map(mx.array, path.rows()) if sampled else (None, None)
    packed, features, state = decoder.run(
        step,
        mx.array([anchor, *path.tokens], mx.int32),
        ids,
        logq,
        mx.array(path.allowed),
        decoder.scalar(start),
        cache.begin(start, step.width, decoder.compiled),
        decoder.history(),
        key,
    )
    cache.update(state)
    return packed, features


def follow(matcher: Matcher, done: Result, room: int) -> Result:
    """Go on in the grammar with at most `room` tokens of a round, and not beyond its end."""
    kept = 0
    while kept < min(len(done.tokens), room) and not matcher.ended:
        matcher.take(done.tokens[kept])
        kept += 1
    return done.cut(kept)
