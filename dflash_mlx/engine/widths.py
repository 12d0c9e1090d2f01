"""How many tokens a batch verifies of each text: what brings most tokens per second.

A round of n texts and width w brings n * E(w) tokens in T(n, w) seconds. E follows from how often
drafted tokens were kept, place by place, whatever the width was. T is the median of the latest
rounds of that kind; before there are any, the pair's cost curve stands in where it is known, by
the rule that a pass over n texts of w rows takes what one over n * w rows takes; where it is not,
the width is tried. Width 1 is decoding without the draft, which wins where the rows of a batch
fill the machine already. It teaches nothing of the draft, so that is looked at again from time to
time, ever more rarely while it stays so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from ..costs import CostCurve

TRIED = 3  # rounds of a kind before its time is known
LATEST = 9  # of which the median is taken
FORGET = 0.98  # of what is known of a place, kept per text and round
FIRST_LOOK, LAST_LOOK = 64, 4096  # rounds without the draft before one with it


class Widths:
    """Chooses the widths of batches, and learns from them.

    Args:
        block: the most that may be verified.
        curve: what passes of one text take, where that is known.
    """

    def __init__(self, block: int, curve: CostCurve | None = None) -> None:
        self.candidates = tuple(sorted({1, (block + 1) // 2, block}, reverse=True))
        self._curve = curve
        self._seconds: dict[tuple[int, int], deque[float]] = {}
        # Per place, how often it was reached and kept; before that, one in two.
        self._reached, self._kept = [2.0] * (block - 1), [1.0] * (block - 1)
        self._plain, self._look = 0, FIRST_LOOK

    def choose(self, texts: int, context: int) -> int:
        """The width for so many texts, `context` tokens long on average."""
        takes = {w: self._takes(texts, w, context) for w in self.candidates}
        for width, seconds in takes.items():
            if seconds is None:
                return width
        rates = {w: self.tokens(w) / s for w, s in takes.items() if s is not None}
        best = max(rates, key=lambda w: rates[w])
        if best > 1:
            self._plain, self._look = 0, FIRST_LOOK
            return best
        self._plain += 1
        if self._plain < self._look:
            return 1
        self._plain, self._look = 0, min(2 * self._look, LAST_LOOK)
        return max((w for w in rates if w > 1), key=lambda w: rates[w], default=1)

    def tokens(self, width: int) -> float:
        """E(width), tokens of a text's round."""
        reached, tokens = 1.0, 1.0
        for place in range(width - 1):
            reached *= self._kept[place] / self._reached[place]
            tokens += reached
        return tokens

    def learn(self, width: int, accepted: Sequence[int], seconds: float) -> None:
        """Take note of a round: drafted tokens kept of each text, and what it took."""
        kind = (_about(len(accepted)), width)
        self._seconds.setdefault(kind, deque(maxlen=LATEST)).append(seconds)
        for count in accepted:
            for place in range(min(count + 1, width - 1)):
                self._reached[place] = FORGET * self._reached[place] + 1
                self._kept[place] = FORGET * self._kept[place] + (place < count)

    def _takes(self, texts: int, width: int, context: int) -> float | None:
        """Seconds of a round; None where it has to be tried."""
        known = self._seconds.get((_about(texts), width), ())
        if len(known) >= TRIED:
            return median(known)
        if self._curve is None:
            return None
        seconds = self._curve.target(texts * width, context) + self._curve.host
        return seconds if width == 1 else seconds + self._curve.drafting(context)


def _about(texts: int) -> int:
    """Sizes of batches that count as one: exact up to 4, then powers of two."""
    return texts if texts <= 4 else 1 << (texts - 1).bit_length()
