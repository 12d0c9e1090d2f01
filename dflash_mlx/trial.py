"""Which of two ways to run rounds is faster, judged by rounds of real decoding.

A race of one operation by itself misleads: kernels have won it and then stalled in use, where
other work stands before and behind them. Here both ways take turns at decoding, so that every
round of the race yields its tokens, and medians of whole rounds decide. When rounds later take
far longer than they did then, the race is run again.
"""

from __future__ import annotations

from collections import deque
from statistics import median

COUNTED = 8  # rounds of each way; one more of each before them pays for compilation
FAR_LONGER = 1.5


class Trial:
    """A race between rounds with kernels and rounds without.

    Attributes:
        winner: whether kernels won; None while the race is on.
        ratio: time of a round with kernels per time of one without, from the last race.
    """

    def __init__(self) -> None:
        self.winner: bool | None = None
        self.ratio: float | None = None
        self._times: dict[bool, list[float]] = {True: [], False: []}
        self._expected = 0.0
        self._latest: deque[float] = deque(maxlen=COUNTED)

    def choose(self) -> bool:
        """Whether the next round should run with kernels."""
        if self.winner is not None:
            return self.winner
        done = len(self._times[True]) + len(self._times[False])
        return done % 4 in (0, 3)  # with, without, without, with: a drift hits both alike

    def record(self, kernels: bool, seconds: float) -> bool:
        """Take note of a round; returns whether it decided a race."""
        if self.winner is None:
            self._times[kernels].append(seconds)
            return self._decide()
        self._latest.append(seconds)
        if len(self._latest) == COUNTED and median(self._latest) > FAR_LONGER * self._expected:
            self.winner = None
        return False

    def _decide(self) -> bool:
        if min(map(len, self._times.values())) <= COUNTED:
            return False
        with_, without = (median(self._times[way][1:]) for way in (True, False))
        self.winner, self.ratio = with_ <= without, with_ / without
        self._expected = min(with_, without)
        self._times = {True: [], False: []}
        self._latest.clear()
        return True
