"""Rounds with lookup drafts: verify tokens that the host knows already, draft none.

The draft's context does not grow in such a round. The features of the rows that are kept wait in
the session and are added before the next block is drafted, as those of plain tokens are.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .accept import accept_given, accept_greedy
from .decode import Decoder, Result, RoundDecoder, read, result
from .drafts.dflash import DFlashDraft
from .kv import Scalar, State
from .loading import Pair
from .lookup import Lookup
from .options import Options
from .sampling import Sampling
from .session import Session
from .step import histories, judge, reported
from .targets.base import Target

ALONE = 8  # tokens verified at once where there is no draft with a block of its own
PAYS = 1.5  # tokens a round has to promise there, as wider passes take longer
ROUNDS = 24  # over about so many the tokens of rounds with the draft are averaged


@dataclass(frozen=True, eq=False)
class GivenStep:
    """A round that verifies `width` known tokens, the anchor among them."""

    target: Target
    sampling: Sampling
    width: int
    logprobs: int | None = None

    @property
    def key(self) -> tuple[Hashable, ...]:
        """What tells this step from others of the same pair."""
        return ("given", self.width, self.sampling, self.logprobs)

    def __call__(
        self, block: mx.array, start: Scalar, state: State, history: mx.array, key: mx.array
    ) -> tuple[mx.array, mx.array | None, State]:
        """Verify, accept.

        Args:
            block: int32 [width], anchor and drafted tokens.
            start: the anchor's position.
            state: the target's cache.
            history: int32 [sampling.history], the tokens before the anchor, -1 where none.
            key: random key of this round.

        Returns:
            int32 [1 + width] as `accept` describes, and log-probabilities behind it if wanted;
            features [1, width, ...] of the verified rows, None without taps; the new state.
        """
        hidden, features, state = self.target.forward(block[None], start, state)
        rows = histories(history, block)
        judged = judge(self.target, hidden, rows, self.sampling, self.logprobs)
        if self.sampling.greedy:
            packed = accept_greedy(block[1:], judged.said)
        else:
            packed = accept_given(block[1:], judged.said, mx.random.split(key)[1])
        return reported(self.target.ranks.decide(packed), judged, self.logprobs), features, state


class GivenDecoder(RoundDecoder):
    """Verifies lookup drafts; who finds them is another matter."""

    def __init__(self, pair: Pair, session: Session, options: Options, seed: int) -> None:
        super().__init__(pair, session, options, seed)
        self._keeps = pair.draft is not None and options.speculate
        self._given: tuple[int, ...] = ()
        self._features: mx.array | None = None

    def verify(self, anchor: int, given: Sequence[int]) -> Result:
        """A round in which `given`, at least one token, is drafted behind the anchor."""
        self._given = tuple(given)
        self._arm()
        return self.next(anchor, len(given) + 1)

    def commit(self, anchor: int, tokens: Sequence[int]) -> None:
        kept = [anchor, *tokens[:-1]]
        if self._keeps:
            assert self._features is not None
            self.session.keep(kept, self._features)
        else:
            self.session.commit(kept, None)

    def _step_of(self, target: Target, draft: DFlashDraft | None) -> GivenStep:
        return GivenStep(target, self.sampling, len(self._given) + 1, self.logprobs)

    def _round(self, anchor: int, step: Any) -> Result:
        cache = self.session.cache
        start = cache.length
        packed, self._features, state = self.run(
            step,
            mx.array([anchor, *self._given], mx.int32),
            self.scalar(start),
            cache.begin(start, step.width, self.compiled),
            self.history(),
            self.key(start),
        )
        cache.update(state)
        return result(read(packed), step.width)._replace(copied=True)


class LookupDecoder(Decoder):
    """Rounds with lookup drafts where they promise more tokens than those of another decoder.

    Args:
        otherwise: a decoder with the draft and a fixed width, or a plain one.
    """

    def __init__(
        self, pair: Pair, session: Session, options: Options, seed: int, otherwise: Decoder
    ) -> None:
        super().__init__(pair, session, options, seed)
        self._otherwise = self._last = otherwise
        self._given = GivenDecoder(pair, session, options, seed)
        self._lookup = Lookup()
        drafts = pair.draft if options.speculate else None
        self._width = options.width(drafts.config.block_size if drafts else ALONE)
        # Tokens of a round with the draft; unknown before the first.
        self._usual: float | None = None if drafts else PAYS

    def next(self, anchor: int, room: int) -> Result:
        given = self._given_for(anchor, room)
        if given and not self._otherwise.ahead:
            self._last = self._given
            return self._given.verify(anchor, given)
        if self._last is self._given:
            self.session.flush()
        self._last = self._otherwise
        # A pass issued ahead would be in the way of the lookup draft.
        done = self._otherwise.next(anchor, 1 if given else room)
        self._learn(done)
        return done

    def commit(self, anchor: int, tokens: Sequence[int]) -> None:
        self._last.commit(anchor, tokens)

    def _given_for(self, anchor: int, room: int) -> Sequence[int]:
        """The lookup draft of the next round; empty where there is none, or it promises less."""
        match = self._lookup.follow(self.session.ids, anchor)
        width = min(self._width, room)
        if match is None or self._usual is None or width < 2:
            return ()
        promised = self._lookup.expected(match)[width - 1]
        return match.tokens[: width - 1] if promised > self._usual else ()

    def _learn(self, done: Result) -> None:
        if done.drafted:
            usual = self._usual or float(len(done.tokens))
            self._usual = usual + (len(done.tokens) - usual) / ROUNDS
