"""Widths by a script, and prices for policies, in place of measured ones."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from dflash_mlx import generation
from dflash_mlx.costs import Corrected, CostCurve, widths_of
from dflash_mlx.loading import Pair


class Script:
    """Verifies the widths of a list, over and over; 0 is a rest of `rest` tokens.

    `copies` are those of lookup drafts, where there are any; 0 does without.
    """

    def __init__(self, widths: Sequence[int], rest: int = 3, copies: Sequence[int] = (0,)) -> None:
        self._widths, self._rest, self._next = list(widths), rest, 0
        self._copies, self._asked, self._copy = list(copies), -1, 0
        self.seen_copies: list[tuple[int, int]] = []  # verified, accepted
        self.seen: list[tuple[int, int]] = []  # verified, accepted
        self.certainty: list[list[float]] = []
        self.timed: list[int] = []

    def choose(self, certainty: Sequence[float], context: int, most: int) -> int:
        width = self._widths[self._next % len(self._widths)]
        self._next += 1
        self.certainty.append(list(certainty))
        return min(width, most)

    def rest(self) -> int:
        return self._rest

    def learn(self, certainty: Sequence[float], verified: int, accepted: int) -> None:
        self.seen.append((verified, accepted))

    def copy(
        self, tokens: Sequence[float], certainty: Sequence[float], context: int, most: int
    ) -> int:
        self._asked += 1
        self._copy = min(self._copies[self._asked % len(self._copies)], most)
        return self._copy if self._copy > 1 else 0

    def copied(self, accepted: int) -> None:
        self.seen_copies.append((self._copy - 1, accepted))

    def time(self, width: int, context: int, seconds: float, given: bool = False) -> None:
        self.timed.append(-width if given else width)


@contextmanager
def scripted(script: Script) -> Iterator[None]:
    """Generations with block "auto" follow the script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "policy_of", lambda pair, options: script)
        yield


def linear(block: int, per_token: float, draft: float = 0.2, host: float = 0.0) -> CostCurve:
    """A pass of one token takes a second, and each further one `per_token`."""
    widths = widths_of(block)
    row = tuple(1 + per_token * (w - 1) for w in widths)
    return CostCurve(widths, (1,), (row,), (draft,), host)


def priced(pair: Pair, per_token: float = 0.1, draft: float = 0.2) -> Pair:
    """The pair, with costs that nothing changes."""
    assert pair.draft is not None
    pair.costs = Fixed(linear(pair.draft.config.block_size, per_token, draft))
    return pair


class Fixed(Corrected):
    """The prices of a curve, whatever is timed."""

    def __init__(self, curve: CostCurve) -> None:
        super().__init__(curve, still=True)
