"""What a pass takes, by its width and the length of the context: measured, stored, corrected.

Seconds in, seconds out, no MLX. Measured times are noisy and are made monotone: a wider pass, or
one over a longer context, never takes less.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from .errors import CheckpointError

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # few, as each is compiled apart


COMMON, OWN, FAR = 0.1, 0.05, math.log(1.5)


def widths_of(block: int) -> tuple[int, ...]:
    """The widths that are used with a block of so many tokens."""
    return (*(w for w in WIDTHS if w < block), block)


@dataclass(frozen=True)
class CostCurve:
    """Times of one pair on one machine, in seconds.

    Attributes:
        widths: ascending, from 1.
        contexts: ascending.
        verify: per context and width, a pass of the target.
        draft: per context, a pass of the draft over its block.
        host: what else a round takes.
    """

    widths: tuple[int, ...]
    contexts: tuple[int, ...]
    verify: tuple[tuple[float, ...], ...]
    draft: tuple[float, ...]
    host: float

    def round(self, width: int, context: int) -> float:
        """A round that verifies `width` tokens behind `context` and drafts a block."""
        return self.target(width, context) + self.drafting(context) + self.host

    def given(self, width: int, context: int) -> float:
        """A round that verifies tokens which are there already, and drafts none."""
        return self.target(width, context) + self.host

    def plain(self, context: int) -> float:
        """A token decoded without the draft."""
        return self.target(1, context)

    def target(self, width: int, context: int) -> float:
        """A pass over `width` tokens."""
        return _between(
            self.contexts, [_between(self.widths, v, width) for v in self.verify], context
        )

    def drafting(self, context: int) -> float:
        """A pass of the draft."""
        return _between(self.contexts, self.draft, context)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str) -> CostCurve:
        """What `as_dict` made.

        Raises:
            CheckpointError: a field is missing, of another kind, or the numbers make no curve.
        """
        try:
            curve = cls(
                tuple(int(w) for w in raw["widths"]),
                tuple(int(c) for c in raw["contexts"]),
                tuple(tuple(float(s) for s in row) for row in raw["verify"]),
                tuple(float(s) for s in raw["draft"]),
                float(raw["host"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{source}: no times of passes in it: {error!r}") from error
        if not curve._is_sound():
            raise CheckpointError(f"{source}: its times of passes make no sense")
        return curve

    def _is_sound(self) -> bool:
        rows = [*self.verify, self.draft]
        sizes = [len(self.widths)] * len(self.verify) + [len(self.contexts)]
        rising = all(a < b for row in (self.widths, self.contexts) for a, b in pairwise(row))
        return (
            self.widths[:1] == (1,)
            and len(self.contexts) == len(self.verify) > 0
            and [len(row) for row in rows] == sizes
            and rising
            and all(0 < s < math.inf for row in rows for s in row)
            and 0 <= self.host < math.inf
        )


def fitted(
    widths: Sequence[int],
    contexts: Sequence[int],
    verify: Sequence[Sequence[float]],
    draft: Sequence[float],
    host: float,
) -> CostCurve:
    """The curve nearest to measured times in which no pass gets cheaper by growing."""
    by_width = [rising(row) for row in verify]
    by_context = zip(*(rising(column) for column in zip(*by_width, strict=True)), strict=True)
    return CostCurve(
        tuple(widths), tuple(contexts), tuple(by_context), tuple(rising(draft)), max(host, 0.0)
    )


def rising(values: Sequence[float]) -> list[float]:
    """The rising sequence nearest to `values`: least squares, by pooling adjacent violators."""
    pools: list[tuple[float, int]] = []  # mean, members
    for value in values:
        mean, members = value, 1
        while pools and pools[-1][0] > mean:
            before, more = pools.pop()
            mean = (mean * members + before * more) / (members + more)
            members += more
        pools.append((mean, members))
    return [mean for mean, members in pools for _ in range(members)]


class Corrected:
    """A curve kept true by what rounds take in use.

    A common factor follows the machine (its temperature, other work), one per width what the
    measurement missed of that width. Outliers count as FAR at most.

    Args:
        curve: where to start.
        still: stay there.
    """

    def __init__(self, curve: CostCurve, still: bool = False) -> None:
        self.curve = curve
        self._still = still
        self._common = 0.0  # logarithms
        self._own: dict[int, float] = {}  # negative widths: of rounds that draft nothing

    def round(self, width: int, context: int) -> float:
        """As of the curve."""
        return self.curve.round(width, context) * self._factor(width)

    def given(self, width: int, context: int) -> float:
        """As of the curve."""
        return self.curve.given(width, context) * self._factor(-width)

    def plain(self, context: int) -> float:
        """As of the curve."""
        return self.curve.plain(context) * self._factor(0)

    def time(self, width: int, context: int, seconds: float, given: bool = False) -> None:
        """Take note of a round's time; width 0 is a token decoded plainly."""
        if self._still:
            return
        if given:
            expected, kind = self.given(width, context), -width
        else:
            expected = self.round(width, context) if width else self.plain(context)
            kind = width
        off = max(-FAR, min(FAR, math.log(max(seconds, 1e-9) / expected)))
        self._common += COMMON * off
        self._own[kind] = self._own.get(kind, 0.0) + OWN * off

    def _factor(self, kind: int) -> float:
        return math.exp(self._common + self._own.get(kind, 0.0))


def _between(places: Sequence[int], values: Sequence[float], place: float) -> float:
    """Linear between the places, and beyond the last one; constant before the first."""
    if len(places) == 1 or place <= places[0]:
        return values[0]
    right = min(bisect_right(places, place), len(places) - 1)
    (a, b), (x, y) = places[right - 1 : right + 1], values[right - 1 : right + 1]
    return x + (y - x) * (place - a) / (b - a)
