"""Times of passes, measured with the very rounds that decoding runs.

A context of any length costs nothing to make: keys and values of zeros take as long to read as
any others. All kinds of rounds take turns, forwards and backwards, so that a drift of the machine
hits them alike; of each the median counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

from ..adaptive import AdaptiveDecoder
from ..costs import CostCurve, fitted, widths_of
from ..errors import UsageError
from ..loading import Pair
from ..options import Options
from ..session import Session

CONTEXTS = (256, 4096)
REPEATS = 5
FEWEST = 3  # of them where time runs out
AHEAD = 2  # plain tokens timed together, as each is issued before the one before it is read
PLAIN = -1

Progress = Callable[[int, int], None]


def measure(
    pair: Pair,
    contexts: Sequence[int] = CONTEXTS,
    repeats: int = REPEATS,
    progress: Progress | None = None,
    limit: float = math.inf,
) -> CostCurve:
    """Measure a pair.

    Args:
        pair: with a draft.
        contexts: lengths of the text to measure at, ascending; those the model or the memory
            cannot hold are left out.
        repeats: rounds of each kind that count, besides one that warms up.
        progress: called with rounds done and to do.
        limit: seconds after which rounds that have counted FEWEST times are not repeated.

    Raises:
        UsageError: the pair has no draft, or no length fits.
    """
    if pair.draft is None:
        raise UsageError("without a draft there is nothing to tune; name one with --draft")
    block = pair.draft.config.block_size
    held = [c for c in contexts if c + 2 * block <= pair.max_context]
    if not held:
        raise UsageError(
            f"the context of {pair.name} holds {pair.max_context} tokens; give a shorter length"
        )
    memory = pair.memory
    fitting = [c for c in held if memory is None or memory.fits(c + 2 * block, 1)]
    if not fitting:
        raise UsageError(
            f"{pair.name} has no room for a text of {held[0]} tokens to be measured at; give a "
            "shorter length, --bits 4 or --kv-bits 8"
        )
    kinds = (PLAIN, 0, *widths_of(block))
    total, done = len(fitting) * (repeats + 1) * len(kinds), 0
    found = []
    for place, context in enumerate(fitting, 1):
        until = time.perf_counter() + limit / len(fitting)
        rounds = _Rounds(pair, context)
        times: dict[int, list[float]] = {kind: [] for kind in kinds}
        for turn in range(repeats + 1):
            late = turn > FEWEST and time.perf_counter() > until
            if pair.ranks.agree(late):
                break
            for kind in kinds if turn % 2 else reversed(kinds):
                seconds = rounds.time(kind)
                if turn:
                    times[kind].append(seconds)
                done += 1
                if progress:
                    progress(done, total)
        found.append({kind: median(values) for kind, values in times.items()})
        done = place * (repeats + 1) * len(kinds)
    return _curve(widths_of(block), fitting, found)


def _curve(
    widths: Sequence[int], contexts: Sequence[int], found: Sequence[dict[int, float]]
) -> CostCurve:
    """Parts from whole rounds: what one of width 1 takes beyond its two passes is the host's."""
    host = max(0.0, median(times[1] - times[0] - times[PLAIN] for times in found))
    # A pass is never free, however the clock wavers.
    verify = [
        [times[PLAIN], *(max(times[w] - times[0] - host, times[PLAIN]) for w in widths[1:])]
        for times in found
    ]
    return fitted(widths, contexts, verify, [times[0] for times in found], host)


class _Rounds:
    """Rounds at one length of the text, over and over; none is committed."""

    def __init__(self, pair: Pair, context: int) -> None:
        session = Session(pair.target, pair.draft)
        session.prefill([0, 0], chunk=2)
        assert session.context is not None
        session.cache.stretch(context)
        session.context.stretch(context)
        self._decoder = AdaptiveDecoder(pair, session, Options(), 0, _Nobody())
        self._decoder.try_out(0)

    def time(self, kind: int) -> float:
        """Seconds of a plain token, of a draft (0), or of a round of that width."""
        began = time.perf_counter()
        if kind != PLAIN:
            self._decoder.try_out(kind)
            return time.perf_counter() - began
        self._decoder.plain.next(0, 2)  # issues the next one
        began = time.perf_counter()
        for _ in range(AHEAD):
            self._decoder.plain.next(0, 2)
        seconds = (time.perf_counter() - began) / AHEAD
        self._decoder.plain.next(0, 1)  # issues none
        cache = self._decoder.session.cache
        cache.stretch(cache.length)  # the last pass stood a row behind
        return seconds


class _Nobody:
    """Widths are given, not chosen."""

    def choose(self, certainty: Sequence[float], context: int, most: int) -> int:
        raise AssertionError

    def rest(self) -> int:
        raise AssertionError

    def learn(self, certainty: Sequence[float], verified: int, accepted: int) -> None:
        raise AssertionError

    def copy(
        self, tokens: Sequence[float], certainty: Sequence[float], context: int, most: int
    ) -> int:
        raise AssertionError

    def copied(self, accepted: int) -> None:
        raise AssertionError

    def time(self, width: int, context: int, seconds: float, given: bool = False) -> None:
        raise AssertionError
