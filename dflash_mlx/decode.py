"""Rounds of one generation: issue a step, read its one result, commit what is kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from .drafts.dflash import DFlashDraft
from .kv import Scalar
from .loading import Pair
from .logprobs import TokenLogprob, unpack
from .options import Options
from .ranks import ALONE, Ranks
from .sampling import Sampling, process
from .session import Session
from .step import DraftStep, PlainStep, drawn, judge_logits, reported
from .targets.base import Target
from .trial import Trial

log = logging.getLogger(__name__)

Issued = tuple[mx.array, mx.array | None]  # accepted and token, features; perhaps not computed yet


class Result(NamedTuple):
    """What a round brought.

    Attributes:
        tokens, drafted, accepted: as of `stats.Round`.
        logprobs: of each token, if wanted.
        copied: the draft was copied from the text.
    """

    tokens: tuple[int, ...]
    drafted: int
    accepted: int
    logprobs: tuple[TokenLogprob, ...] = ()
    copied: bool = False

    def cut(self, count: int) -> Result:
        """The first `count` tokens of it."""
        tokens, logprobs = self.tokens[:count], self.logprobs[:count]
        accepted = min(self.accepted, count)
        return self._replace(tokens=tokens, accepted=accepted, logprobs=logprobs)


class Decoder:
    """What plain decoding and DFlash share: how a step is called."""

    def __init__(self, pair: Pair, session: Session, options: Options, seed: int) -> None:
        self.pair = pair
        self.session = session
        self.sampling = options.sampling
        self.logprobs = options.logprobs
        self.compiled = pair.compiles if options.compiled is None else options.compiled
        self._seed = seed

    def next(self, anchor: int, room: int) -> Result:
        """The tokens of the next round, at least one; `room` says how many are wanted."""
        raise NotImplementedError

    @property
    def ahead(self) -> bool:
        """Whether a pass is under way that only the next round of this decoder can use."""
        return False

    def commit(self, anchor: int, tokens: Sequence[int]) -> None:
        """Keep `tokens` of the last round, of which the last becomes the anchor."""
        raise NotImplementedError

    def run(self, step: Any, *args: Any) -> Any:
        """Call a step, compiled once per pair if so wanted."""
        if not self.compiled:
            return step(*args)
        key = (step.target.kernels.active, self.pair.kernels.version, step.key)
        if key not in self.pair.steps:
            self.pair.steps[key] = mx.compile(lambda *a: step(*a))
        return self.pair.steps[key](*args)

    def scalar(self, position: int) -> Scalar:
        """A position as the step wants it."""
        return mx.array(position, mx.int32) if self.compiled else position

    def key(self, position: int) -> mx.array:
        """Random key of the round whose anchor stands at `position`."""
        return round_key(self._seed, position)

    def history(self) -> mx.array:
        """What penalties look at before the anchor."""
        return recent(self.session.ids, self.sampling.history)


class PlainDecoder(Decoder):
    """The target alone. The next step is issued before the last one is read, as mlx-lm does."""

    def __init__(self, pair: Pair, session: Session, options: Options, seed: int) -> None:
        super().__init__(pair, session, options, seed)
        # No kernel pays for one row; asked for, they let every width round alike.
        target = pair.by_kernels[0] if pair.kernels.mode == "on" else pair.target
        self._step = PlainStep(target, options.sampling, options.logprobs)
        self._issued: Issued | None = None
        self._features: mx.array | None = None  # of the last anchor

    def next(self, anchor: int, room: int) -> Result:
        start = self.session.cache.length
        issued = self._issued or self._issue(mx.array([anchor], mx.int32), start)
        packed, self._features = issued
        # A step with penalties needs the token before it in the history, and has to wait.
        ahead = room > 1 and not self.sampling.history
        self._issued = self._issue(packed[1:2], start + 1) if ahead else None
        return result(read(packed), 1)

    @property
    def ahead(self) -> bool:
        return self._issued is not None

    def commit(self, anchor: int, tokens: Sequence[int]) -> None:
        self.session.commit([anchor], None)

    def _issue(self, anchor: mx.array, start: int) -> Issued:
        cache = self.session.cache
        packed, features, state = self.run(
            self._step,
            anchor,
            self.scalar(start),
            cache.begin(start, 1, self.compiled),
            self.history(),
            self.key(start),
        )
        cache.update(state)
        mx.async_eval(packed)
        return packed, features


class RoundDecoder(Decoder):
    """Rounds by a step that kernels can run, too: by them where they are faster."""

    def __init__(self, pair: Pair, session: Session, options: Options, seed: int) -> None:
        super().__init__(pair, session, options, seed)
        self._chunk = options.prefill_chunk

    def _arm(self) -> None:
        """Run rounds by the steps that `_step_of` makes."""
        pair = self.pair
        self._step = self._fast = self._step_of(pair.target, pair.draft)
        if pair.kernels.active:
            self._fast = self._step_of(*pair.by_kernels)
        self._trial = pair.trials.setdefault(self._step.key, Trial())

    def _step_of(self, target: Target, draft: DFlashDraft | None) -> Any:
        """A round by these networks."""
        raise NotImplementedError

    def _round(self, anchor: int, step: Any) -> Result:
        """Run a round and read what it brought."""
        raise NotImplementedError

    def next(self, anchor: int, room: int) -> Result:
        kernels = self.pair.kernels
        if kernels.mode != "auto" or not kernels.active:
            return self._guarded(anchor, kernels.active)
        fast = self._trial.choose()
        began = time.perf_counter()
        result = self._guarded(anchor, fast)
        if self._trial.record(fast, time.perf_counter() - began):
            ratio, faster = self._trial.ratio, "faster" if self._trial.winner else "slower"
            log.info("rounds with kernels are %s: %.2f of the time", faster, ratio)
        return result

    def _guarded(self, anchor: int, fast: bool) -> Result:
        """A round; by MLX's own operations if kernels fail."""
        try:
            return self._round(anchor, self._fast if fast else self._step)
        except RuntimeError as error:
            if not fast:
                raise
            self.pair.kernels.retire("all", str(error).strip().splitlines()[0])
            self.session.restore(self._chunk)
            return self._round(anchor, self._step)


class DraftDecoder(RoundDecoder):
    """DFlash: draft a block, verify it, keep the accepted tokens and the bonus."""

    def __init__(self, pair: Pair, session: Session, options: Options, seed: int) -> None:
        super().__init__(pair, session, options, seed)
        assert pair.draft is not None and session.context is not None
        self._context = session.context
        self._width = options.width(pair.draft.config.block_size)
        self._verified: mx.array | None = None
        self._arm()

    def _step_of(self, target: Target, draft: DFlashDraft | None) -> Any:
        assert draft is not None
        return DraftStep(target, draft, self.sampling, self._width, logprobs=self.logprobs)

    def _round(self, anchor: int, step: Any) -> Result:
        cache, context = self.session.cache, self._context
        start, behind = cache.length, cache.length - context.length
        packed, verified, state, context_state = self.run(
            step,
            mx.array([anchor], mx.int32),
            self.scalar(start),
            cache.begin(start, self._width, self.compiled),
            context.begin(context.length, behind + self._width, self.compiled),
            self._features(behind),
            self.scalar(context.length),
            self.history(),
            self.key(start),
        )
        # Before anything is computed: rows are written in place only where nobody holds the old
        # arrays, else every round would copy all keys and values.
        cache.update(state)
        context.update(context_state)
        done = result(read(packed), self._width)
        self._verified = verified
        context.commit(behind)
        return done

    def commit(self, anchor: int, tokens: Sequence[int]) -> None:
        self.session.commit([anchor, *tokens[:-1]], self._verified)

    def _features(self, rows: int) -> mx.array | None:
        features = self.session.features
        if not self.compiled:
            return None if features is None else features[:, :rows]
        if features is None:
            # A compiled step takes one shape; the block overwrites every row of these.
            size = len(self.pair.target.taps) * self.pair.target.hidden_size
            return mx.zeros((1, self._width, size), self.pair.target.dtype)
        return features


def first_token(
    logits: mx.array,
    prompt: Sequence[int],
    sampling: Sampling,
    seed: int,
    logprobs: int | None = None,
    allowed: np.ndarray | None = None,
    ranks: Ranks = ALONE,
) -> Result:
    """The token behind the prompt from its last logits [1, vocab]; one of those `allowed`."""
    history = recent(prompt, sampling.history)[None] if sampling.history else None
    mask = None if allowed is None else mx.array(allowed[None])
    judged = judge_logits(process(logits, history, sampling), sampling, logprobs, mask)
    token = drawn(judged.said, sampling, round_key(seed, len(prompt) - 1))
    packed = mx.concatenate([mx.zeros(1, mx.int32), ranks.decide(token)])
    return result(read(reported(packed, judged, logprobs)), 1)


def read(packed: mx.array) -> list[int]:
    """The round's one transfer to the host."""
    return cast(list[int], packed.tolist())


def result(packed: Sequence[int], width: int) -> Result:
    """A round on the host, from accepted, `width` tokens and perhaps log-probabilities."""
    accepted = packed[0]
    tokens = tuple(packed[1 : 2 + accepted])
    logprobs = unpack(packed[1 + width :], width, tokens)
    return Result(tokens, width - 1, accepted, logprobs)


def recent(ids: Sequence[int], size: int) -> mx.array:
    """The last `size` ids, -1 where there are fewer: int32 [size]."""
    last = list(ids[-size:]) if size else []
    return mx.array([-1] * (size - len(last)) + last, mx.int32)


def round_key(seed: int, position: int) -> mx.array:
    """Seed and position are the key: Threefry streams of different keys are independent."""
    return mx.array([seed, position], mx.uint32)
