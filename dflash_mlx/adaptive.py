"""Decoding with a width of its own for every round."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx

from .ahead import SCALE, Ahead, AheadStep, Block
from .copying import GivenDecoder
from .decode import Decoder, DraftDecoder, PlainDecoder, Result, read, result
from .drafts.dflash import DFlashDraft
from .loading import Pair
from .lookup import Lookup
from .options import Options
from .session import Session
from .targets.base import Target


class Chooser(Protocol):
    """What decides about widths; see `width.Policy`."""

    def choose(self, certainty: Sequence[float], context: int, most: int) -> int:
        """Tokens to verify, 1 to `most`; 0 to decode plainly for a while."""

    def rest(self) -> int:
        """For how many tokens."""

    def learn(self, certainty: Sequence[float], verified: int, accepted: int) -> None:
        """Take note of a round."""

    def copy(
        self, tokens: Sequence[float], certainty: Sequence[float], context: int, most: int
    ) -> int:
        """Tokens to verify with a lookup draft; 0 to do without it."""

    def copied(self, accepted: int) -> None:
        """Take note of a round with a lookup draft."""

    def time(self, width: int, context: int, seconds: float, given: bool = False) -> None:
        """Take note of what it took; width 0 is a token decoded plainly."""


class AdaptiveDecoder(DraftDecoder):
    """DFlash with the width that `chooser` finds best, down to none.

    Between rounds the context is as long as the target's cache, and the block behind the anchor is
    drafted. While tokens are decoded plainly neither holds; the features of the tokens wait in
    the session.

    Attributes:
        plain: what decodes plainly meanwhile.
    """

    def __init__(
        self,
        pair: Pair,
        session: Session,
        options: Options,
        seed: int,
        chooser: Chooser,
        lookup: bool = False,
    ) -> None:
        super().__init__(pair, session, options, seed)
        assert pair.draft is not None
        self._size = pair.draft.config.block_size
        self._chooser = chooser
        self.plain = KeepingDecoder(pair, session, options, seed)
        self._rest = self._resting = 0  # tokens of this rest, and how many are left of it
        self._began = 0.0
        self._block: Block | None = None
        self._certainty: list[float] = []
        self._lookup = Lookup() if lookup else None
        self._given = GivenDecoder(pair, session, options, seed)
        self._last: Decoder = self  # who ran the last round

    def next(self, anchor: int, room: int) -> Result:
        given = self._given_for(anchor, room)
        if given and not self.plain.ahead:
            return self._copy(anchor, given)
        self._last = self
        # A pass issued ahead would be in the way of the lookup draft.
        return self._next(anchor, 1 if given and self._resting else room)

    def _next(self, anchor: int, room: int) -> Result:
        """A round without a lookup draft."""
        if self._resting == 0:
            if self._block is None:
                self._open(anchor)
            width = self._chooser.choose(self._certainty, self.session.cache.length, room)
            width = self.pair.ranks.agree(width)  # others have their own clock
            if width:
                return self._verify(anchor, room, width)
            self._block, self._rest = None, self.pair.ranks.agree(self._chooser.rest())
            self._resting, self._began = self._rest, time.perf_counter()
        return self._decode_plainly(anchor, room)

    def commit(self, anchor: int, tokens: Sequence[int]) -> None:
        if self._last is not self or self._block is None:
            (self.plain if self._last is self else self._last).commit(anchor, tokens)
            return
        self.session.commit([anchor, *tokens[:-1]], None)
        self._context.commit(len(tokens))

    def try_out(self, width: int) -> None:
        """Run a round and leave everything as it was, but for rows that do not count."""
        self._use(width)
        self._guarded(0, self.pair.kernels.active)

    def _given_for(self, anchor: int, room: int) -> Sequence[int]:
        """The lookup draft of the next round; empty where there is none, or it promises less."""
        match = self._lookup.follow(self.session.ids, anchor) if self._lookup else None
        if self._lookup is None or match is None:
            return ()
        certainty = self._certainty if self._block is not None else ()
        tokens = self._lookup.expected(match)
        width = self._chooser.copy(tokens, certainty, self.session.cache.length, room)
        width = self.pair.ranks.agree(width)
        return match.tokens[: width - 1] if width else ()

    def _copy(self, anchor: int, given: Sequence[int]) -> Result:
        context, made = self.session.cache.length, len(self.pair.steps)
        began = time.perf_counter()
        done = self._given.verify(anchor, given)
        seconds = time.perf_counter() - began
        if len(self.pair.steps) == made:
            self._chooser.time(len(given) + 1, context, seconds, given=True)
        self._chooser.copied(done.accepted)
        # Of no use behind another anchor. A rest goes on, and its clock.
        self._block, self._began, self._last = None, self._began + seconds, self._given
        return done

    def _decode_plainly(self, anchor: int, room: int) -> Result:
        context = self.session.cache.length
        done = self.plain.next(anchor, min(room, self._resting))
        self._resting -= 1
        if self._resting == 0:
            # All of the rest at once: each token is computed while its predecessor is consumed.
            self._chooser.time(0, context, (time.perf_counter() - self._began) / self._rest)
        return done

    def _open(self, anchor: int) -> None:
        """Draft the first block, or the first one behind plain tokens."""
        self.session.flush()
        self._use(0)
        self._guarded(anchor, self.pair.kernels.active)

    def _verify(self, anchor: int, room: int, width: int) -> Result:
        before = self._certainty
        context, made = self.session.cache.length, len(self.pair.steps)
        self._use(width)
        began = time.perf_counter()
        done = super().next(anchor, room)
        if len(self.pair.steps) == made:  # else it has waited for a compilation
            self._chooser.time(width, context, time.perf_counter() - began)
        self._chooser.learn(before, width - 1, done.accepted)
        return done

    def _use(self, width: int) -> None:
        self._width = width
        self._arm()

    def _step_of(self, target: Target, draft: DFlashDraft | None) -> AheadStep:
        assert draft is not None
        return AheadStep(target, draft, self.sampling, self._width, self.logprobs)

    def _round(self, anchor: int, step: Any) -> Result:
        cache, context = self.session.cache, self._context
        start = cache.length
        ahead = Ahead(
            *self.run(
                step,
                mx.array([anchor], mx.int32),
                self.scalar(start),
                context.begin(start, step.width + self._size, self.compiled),
                self.history(),
                self.key(start),
                # No variable may hold the old arrays, else rows would not be written in place.
                cache.begin(start, step.width, self.compiled) if step.width else None,
                self._block if step.width else None,
            )
        )
        # As for fixed blocks: before anything is computed.
        if ahead.state is not None:
            cache.update(ahead.state)
        context.update(ahead.context)
        return self._take(ahead, step.width)

    def _take(self, ahead: Ahead, width: int) -> Result:
        """Read what a round brought, and hold on to the next block."""
        mx.eval(ahead.packed, [part for part in ahead.block if part is not None])
        packed, self._block = read(ahead.packed), ahead.block
        self._certainty = [unit / SCALE for unit in packed[1 - self._size :]]
        return result(packed[: 1 - self._size], width) if width else Result((), 0, 0)


class KeepingDecoder(PlainDecoder):
    """Plain decoding from which drafting can go on: it keeps the features."""

    def commit(self, anchor: int, tokens: Sequence[int]) -> None:
        assert self._features is not None
        self.session.keep([anchor], self._features)
