"""Where the time of a round goes: a pass of its own, in which every part is waited for.

A round is issued as a whole and waited for once, so its parts cannot be timed as it runs. Here each
part is evaluated by itself; that takes longer in all, and no speed is taken from it. `host` is what
is left: building graphs in Python, transfers, bookkeeping. Elsewhere it overlaps with the device or
is compiled away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import mlx.core as mx

from ..decode import DraftDecoder, Result, first_token
from ..drafts.dflash import DFlashDraft
from ..drafts.shortlist import Proposal
from ..kv import Scalar, State
from ..loading import Pair
from ..options import Options
from ..session import Session
from ..step import DraftStep, Judged
from ..targets.base import Target

WARM_ROUNDS = 4
T = TypeVar("T")


@dataclass(frozen=True)
class Split:
    """Seconds per round, each part waited for by itself.

    Attributes:
        draft: from the anchor and masks to drafted tokens.
        verify: the target's pass, up to its choice or distribution.
        accept: which of them are kept.
        commit: the draft's context and the target's cache take in what was kept.
        host: everything else.
    """

    rounds: int
    draft: float
    verify: float
    accept: float
    commit: float
    host: float

    def as_dict(self) -> dict[str, Any]:
        """In the form of JSON."""
        return asdict(self)


@dataclass
class Clock:
    """Seconds of every part so far."""

    spent: dict[str, float] = field(default_factory=dict)

    def wait(self, part: str, made: T) -> T:
        """Evaluate what a part has made, and count the time until it is there."""
        began = time.perf_counter()
        mx.eval(made)
        self.spent[part] = self.spent.get(part, 0.0) + time.perf_counter() - began
        return made


@dataclass(frozen=True, eq=False)
class TimedStep(DraftStep):
    """A round whose parts are waited for."""

    clock: Clock = field(default_factory=Clock)

    def extend(self, features: mx.array | None, features_start: Scalar, context: State) -> State:
        return self.clock.wait("commit", super().extend(features, features_start, context))

    def propose(
        self, anchor: mx.array, start: Scalar, context: State, history: mx.array, key: mx.array
    ) -> tuple[Proposal, State]:
        made = super().propose(anchor, start, context, history, key)
        return self.clock.wait("draft", made)

    def verify(
        self, block: mx.array, start: Scalar, state: State, history: mx.array
    ) -> tuple[Judged, mx.array, State]:
        return self.clock.wait("verify", super().verify(block, start, state, history))

    def accept(
        self, drafted: mx.array, logq: mx.array | None, said: mx.array, key: mx.array
    ) -> mx.array:
        return self.clock.wait("accept", super().accept(drafted, logq, said, key))


class TimedDecoder(DraftDecoder):
    """DFlash by such rounds, with kernels where they have proved to pay."""

    def __init__(self, pair: Pair, session: Session, options: Options, seed: int) -> None:
        self.clock = Clock()
        super().__init__(pair, session, replace(options, compiled=False), seed)

    def _step_of(self, target: Target, draft: DFlashDraft | None) -> DraftStep:
        assert draft is not None
        return TimedStep(
            target, draft, self.sampling, self._width, logprobs=self.logprobs, clock=self.clock
        )

    def next(self, anchor: int, room: int) -> Result:
        kernels = self.pair.kernels
        fast = kernels.active and (kernels.mode == "on" or self._trial.winner is True)
        return self._guarded(anchor, fast)

    def commit(self, anchor: int, tokens: Sequence[int]) -> None:
        super().commit(anchor, tokens)
        self.clock.wait("commit", self.session.cache.arrays())


def split(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    options: Options,
    watch: Callable[[], None] = lambda: None,
) -> Split:
    """Time the parts of the rounds that answer some prompts.

    Args:
        prompts: ids.
        watch: called after each prompt.
    """
    warm = replace(options, max_tokens=min(options.max_tokens, WARM_ROUNDS))
    _answer(pair, prompts[0], warm)
    spent = dict.fromkeys(("draft", "verify", "accept", "commit", "host"), 0.0)
    count = 0
    for prompt in prompts:
        rounds, clock, seconds = _answer(pair, prompt, options)
        count += rounds
        for part, taken in clock.spent.items():
            spent[part] += taken
        spent["host"] += seconds - sum(clock.spent.values())
        watch()
    each = {part: taken / count if count else 0.0 for part, taken in spent.items()}
    return Split(count, **each)


def _answer(pair: Pair, prompt: Sequence[int], options: Options) -> tuple[int, Clock, float]:
    """Rounds, the clock and seconds of one answer, without its prefill."""
    seed = options.seed or 0
    session = Session(pair.target, pair.draft)
    logits, _ = session.prefill(prompt, chunk=options.prefill_chunk)
    anchor = first_token(logits, prompt, options.sampling, seed).tokens[0]
    decoder = TimedDecoder(pair, session, options, seed)
    room, rounds, began = options.max_tokens - 1, 0, time.perf_counter()
    while room > 0 and anchor not in pair.eos_ids:
        tokens = decoder.next(anchor, room).tokens
        decoder.commit(anchor, tokens)
        rounds, room = rounds + 1, room - len(tokens)
        anchor = next((t for t in tokens if t in pair.eos_ids), tokens[-1])
    return rounds, decoder.clock, time.perf_counter() - began
