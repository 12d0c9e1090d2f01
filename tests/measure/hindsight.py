"""How near to the oracle any rule comes that knows the draft's probabilities and no more.

The oracle knows what will be accepted. How much can be had without that knowledge shows a rule
that is made for one text, with its answers at hand: chances by a logistic regression that was
fitted to this very text; what time is worth, when to rest and for how long by trying all of them
and keeping the best. A rule that meets the text for the first time has none of this. It is no
strict bound, as its constants do not change within a text.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from dflash_mlx.costs import CostCurve
from dflash_mlx.width import log_odds

from .replay import Text, seconds

STEPS, RIDGE = 50, 0.01  # of the regression
RESTS = (0, 1, 2, 4, 8, 32, 128)  # tokens; 0: never
POORER = (0.0, 0.15, 0.3, 0.6)  # than plain decoding, in tokens, before the draft rests


def hindsight(
    texts: Sequence[Text], curve: CostCurve, widths: Sequence[int], fastest: float
) -> float:
    """Seconds that the best such rule takes for the texts.

    Args:
        texts: what is played.
        curve: what passes take.
        widths: what may be chosen.
        fastest: tokens per second of the oracle; time is worth no more.
    """
    expected = foreseen(texts)
    plain = 1 / curve.plain(1)
    return min(
        sum(seconds(text, Made(expected, curve, widths, *choice), curve) for text in texts)
        for choice in choices(plain, fastest)
    )


def choices(plain: float, fastest: float) -> Iterator[tuple[float, int, float]]:
    """Worths of a second in tokens, rests, and how poor a block is before it."""
    for worth in np.arange(0.9 * plain, fastest, 0.1 * plain):
        for rest in RESTS:
            for poorer in POORER if rest else (0.0,):
                yield float(worth), rest, poorer


class Made:
    """A rule with constants for one text; see `replay.Rule`."""

    def __init__(
        self,
        expected: dict[tuple[float, ...], list[float]],
        curve: CostCurve,
        widths: Sequence[int],
        worth: float,
        rest: int,
        poorer: float,
    ) -> None:
        self._expected, self._curve, self._widths = expected, curve, widths
        self._worth, self._rest, self._poorer = worth, rest, poorer

    def choose(self, certainty: Sequence[float], context: int, most: int) -> int:
        tokens = self._expected[tuple(certainty)]
        gains = {
            w: tokens[w - 1] - self._worth * self._curve.round(w, context)
            for w in self._widths
            if w <= most
        }
        best = max(gains, key=gains.__getitem__)
        plain = 1 - self._worth * self._curve.plain(context)
        return 0 if self._rest and gains[best] < plain - self._poorer else best

    def rest(self) -> int:
        return self._rest

    def learn(self, certainty: Sequence[float], verified: int, accepted: int) -> None: ...


def foreseen(texts: Sequence[Text]) -> dict[tuple[float, ...], list[float]]:
    """Expected tokens of a round by its width from 1 on, for every block of the texts."""
    blocks = [(c, a) for text in texts for c, a in zip(text.certainty, text.agreed, strict=True)]
    judged = [(c, i, i < a) for c, a in blocks for i in range(min(len(c), a + 1))]
    known = np.array([features(c, i) for c, i, _ in judged])
    weights = fitted(known, np.array([kept for _, _, kept in judged], float))
    expected = {}
    for certainty, _ in blocks:
        tokens, reached = [1.0], 1.0
        for place in range(len(certainty)):
            reached *= float(chance(features(certainty, place) @ weights))
            tokens.append(tokens[-1] + reached)
        expected[tuple(certainty)] = tokens
    return expected


def features(certainty: Sequence[float], place: int) -> np.ndarray:
    """Of a place: its own probability, its neighbours', those up to it; all anew per place."""
    odds = [log_odds(p) for p in certainty]
    here = np.eye(len(odds))[place]
    around = [odds[i] if 0 <= i < len(odds) else 0.0 for i in (place - 1, place + 1)]
    so_far = odds[: place + 1]
    own = [1.0, odds[place], odds[place] ** 2 / 4, min(so_far), sum(so_far) / len(so_far)]
    return np.concatenate([own, around, here, here * odds[place]])


def fitted(known: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Weights of the logistic regression, by Newton's steps."""
    weights = np.zeros(known.shape[1])
    for _ in range(STEPS):
        p = chance(known @ weights)
        curvature = (known * (p * (1 - p))[:, None]).T @ known + RIDGE * np.eye(len(weights))
        weights += np.linalg.solve(curvature, known.T @ (kept - p) - RIDGE * weights)
    return weights


def chance(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(odds, -20, 20)))
