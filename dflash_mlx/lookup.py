"""Drafts that cost nothing: what followed the last tokens where they stood before.

Code, quotes and lists repeat what the prompt or the answer has said already. The longer the run of
tokens that agrees with an earlier place, the likelier the next one agrees too, and every token
that is copied makes the run longer. So one estimate serves all places of a draft: the chance that
a token is kept behind a run of so many. It is learned from every token of the text, whatever round
brought it, because what would have been copied is known without verifying it. Pure Python, no MLX.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

LONGEST = 32  # longer runs count as this long
COMPARED = 16  # earlier places that are compared, the latest first
MOST = 63  # tokens of a draft

# Runs of 2, 3, 4, 5 to 6, 7 to 9, ... tokens: the chance of the next one before anything is known,
# worth so many cases, and what of a case is left after another one of its kind.
STARTS = (3, 4, 5, 7, 10, 15, 23)
CHANCES = (0.3, 0.45, 0.55, 0.65, 0.75, 0.85, 0.9, 0.95)
CASES, FORGET = 4.0, 0.97


class Match(NamedTuple):
    """What may come next, and how many of the last tokens agreed with the place it comes from."""

    tokens: tuple[int, ...]
    length: int


class Index:
    """The text so far; a token is added in constant time.

    Places behind the same two tokens are linked, each to the one before it.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._latest: dict[tuple[int, int], int] = {}
        self._before: list[int] = []  # per place, the earlier one behind the same tokens, or -1

    def add(self, token: int) -> None:
        """One more token of the text."""
        earlier = -1
        if len(self.ids) > 1:
            pair = (self.ids[-2], self.ids[-1])
            earlier = self._latest.get(pair, -1)
            self._latest[pair] = len(self.ids)
        self._before.append(earlier)
        self.ids.append(token)

    def find(self, count: int) -> Match | None:
        """Up to `count` tokens from behind the longest run that agrees; of equals, the latest."""
        best, length = -1, 0
        for place in islice(self._places(), COMPARED):
            agreed = self._agreed(place)
            if agreed > length:
                best, length = place, agreed
            if length == LONGEST:
                break
        return Match(self._copy(best, count), length) if length else None

    def _places(self) -> Iterator[int]:
        place = self._latest.get((self.ids[-2], self.ids[-1]), -1) if len(self.ids) > 1 else -1
        while place >= 0:
            yield place
            place = self._before[place]

    def _agreed(self, place: int) -> int:
        """How many tokens before `place` are those at the end of the text."""
        ids, end = self.ids, len(self.ids)
        most = min(place, LONGEST)
        return next((n for n in range(most) if ids[place - 1 - n] != ids[end - 1 - n]), most)

    def _copy(self, place: int, count: int) -> tuple[int, ...]:
        """Where the copy reaches the end of the text, it goes on with itself."""
        known = self.ids[place : place + count]
        return tuple(known[i % len(known)] for i in range(count))


class Odds:
    """How often a copied token was the right one, by the run before it."""

    def __init__(self) -> None:
        self._kept = [CASES * chance for chance in CHANCES]
        self._cases = [CASES] * len(CHANCES)

    def expected(self, match: Match) -> list[float]:
        """Tokens that a round brings, by its width from 1 on."""
        tokens, reached = [1.0], 1.0
        for place in range(len(match.tokens)):
            kind = bisect_right(STARTS, match.length + place)
            reached *= self._kept[kind] / self._cases[kind]
            tokens.append(tokens[-1] + reached)
        return tokens

    def learn(self, match: Match, text: Sequence[int]) -> None:
        """Take note of what really came behind a match, as far as it agreed and once beyond."""
        for place, (copied, token) in enumerate(zip(match.tokens, text, strict=False)):
            kind = bisect_right(STARTS, match.length + place)
            self._kept[kind] = FORGET * self._kept[kind] + (copied == token)
            self._cases[kind] = FORGET * self._cases[kind] + 1
            if copied != token:
                return


class Lookup:
    """Lookup drafts of one generation."""

    def __init__(self) -> None:
        self._index, self._odds = Index(), Odds()
        self._match: Match | None = None

    def follow(self, ids: Sequence[int], anchor: int) -> Match | None:
        """Take note of the text up to the anchor; returns what may come behind it.

        Args:
            ids: the text before the anchor; it only grows from call to call.
            anchor: the last token.
        """
        new = list(chain(islice(ids, len(self._index.ids), None), [anchor]))
        if self._match is not None:
            self._odds.learn(self._match, new)
        for token in new:
            self._index.add(token)
        self._match = self._index.find(MOST)
        return self._match

    def expected(self, match: Match) -> list[float]:
        """Tokens that a round with this draft brings, by its width from 1 on."""
        return self._odds.expected(match)
