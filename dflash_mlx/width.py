"""Which width to verify: from the draft's own probabilities and the price of a pass.

A drafted token is worth verifying where the chance that the round gets that far is worth more
than the time it adds. What time is worth is the rate at which tokens come anyway: a round of
width w brings E(w) tokens on average, one and those that are kept, and takes T(w) seconds, in which
`rate * T(w)` tokens could have been had. The width with the largest difference is chosen. Taking
the largest quotient instead would value time by this block alone, as if all were as poor.

Where even the best difference is negative by the rate of plain decoding, and blocks have been
good for no more lately, the draft rests: tokens are decoded plainly, and now and then a block is
drafted to see whether it promises more. Pure Python, no MLX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

FORGET = 0.998  # of what calibration knows, kept per judged token
ROUNDS = 24  # over about so many rounds the rate is averaged
LOOKS = 20  # the same for what blocks are good for
BROUGHT = 0.5  # of that, what a round brought; the rest is what its block had promised
FIRST_REST, LONGEST_REST = 8, 128  # tokens decoded plainly before the next look
TRIED = 2  # first rounds that are verified whatever they promise
LIMIT = 8.0  # log-odds beyond which a probability says no more


class Costs(Protocol):
    """Seconds; see `costs.CostCurve`."""

    def round(self, width: int, context: int) -> float: ...

    def given(self, width: int, context: int) -> float: ...

    def plain(self, context: int) -> float: ...

    def time(self, width: int, context: int, seconds: float, given: bool = False) -> None: ...


class Calibration:
    """From the draft's probability of a token to the chance that the target keeps it.

    Chances are of a place given that all places before it were kept, and so are the cases it
    learns from. Log-odds of the chance = slope * log-odds of the probability + bias + the place's
    own offset; each is moved by Newton's steps on the log loss, with a curvature that forgets.
    """

    def __init__(self, places: int) -> None:
        self.slope, self.bias, self.offsets = 1.0, 0.0, [0.0] * places
        # What was known before the first case, in units of cases.
        self._of_slope, self._of_bias, self._of_offsets = 60.0, 6.0, [12.0] * places
        self._usual = [1.0] * places  # log-odds of probabilities so far
        self.rounds = 0  # learned from

    def chances(self, certainty: Sequence[float]) -> list[float]:
        """Per place, given the draft's probability of its most probable token."""
        return [self._chance(i, log_odds(p)) for i, p in enumerate(certainty)]

    def usual(self, place: int) -> float:
        """The chance where the probability is not known yet."""
        return self._chance(place, self._usual[place])

    def learn(self, certainty: Sequence[float], verified: int, accepted: int) -> None:
        """Take note of a round: of the first `verified` drafted tokens `accepted` were kept."""
        self.rounds += 1
        for place in range(min(verified, accepted + 1)):
            self._judge(place, log_odds(certainty[place]), place < accepted)
        for place, p in enumerate(certainty):
            self._usual[place] += (log_odds(p) - self._usual[place]) / ROUNDS

    def _judge(self, place: int, x: float, kept: bool) -> None:
        chance = self._chance(place, x)
        error, curve = kept - chance, max(chance * (1 - chance), 0.02)
        self._of_slope = FORGET * self._of_slope + curve * x * x
        self._of_bias = FORGET * self._of_bias + curve
        self._of_offsets[place] = FORGET * self._of_offsets[place] + curve
        self.slope = max(0.0, self.slope + error * x / self._of_slope / 2)
        self.bias += error / self._of_bias / 2
        self.offsets[place] += error / self._of_offsets[place] / 2

    def _chance(self, place: int, x: float) -> float:
        z = self.slope * x + self.bias + self.offsets[place]
        return 1 / (1 + math.exp(-max(-LIMIT, min(LIMIT, z))))


def log_odds(p: float) -> float:
    """Of a probability, within LIMIT."""
    if p <= 0.0 or p >= 1.0:
        return LIMIT if p >= 1.0 else -LIMIT
    return max(-LIMIT, min(LIMIT, math.log(p / (1 - p))))


class Rate:
    """Tokens per second of the last rounds, about ROUNDS of them."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    @property
    def known(self) -> bool:
        """Whether any round counts yet."""
        return self._seconds > 0

    @property
    def value(self) -> float:
        """0 before the first round."""
        return self._tokens / self._seconds if self.known else 0.0

    def count(self, tokens: float, seconds: float) -> None:
        """One more round, or several."""
        keep = 1 - 1 / ROUNDS
        self._tokens = keep * self._tokens + tokens
        self._seconds = keep * self._seconds + seconds


class Policy:
    """Chooses the widths of one generation.

    Args:
        costs: what rounds take.
        widths: what may be chosen, ascending from 1.
        calibration: what is known of the draft, learned on.
        ordered: the probability of a place depends on tokens drafted before it that were drawn at
            random. Whether to verify a token is then decided in order, by what was known before
            it was drawn.
        copies: widths that rounds with lookup drafts may have, ascending.
    """

    def __init__(
        self,
        costs: Costs,
        widths: Sequence[int],
        calibration: Calibration,
        ordered: bool = False,
        copies: Sequence[int] = (),
    ) -> None:
        self._costs, self._widths, self._copies = costs, tuple(widths), tuple(copies)
        self._calibration, self._ordered = calibration, ordered
        # Of rounds with the draft and rests, and of these with lookup drafts among them.
        self._rate, self._whole = Rate(), Rate()
        self._takes = self._plain = self._promised = 0.0  # of the round chosen last
        self._gain = 0.0  # tokens that blocks are good for beyond plain decoding, on average
        self._rest, self._rested, self._blocks = FIRST_REST, 0, 0

    def choose(self, certainty: Sequence[float], context: int, most: int) -> int:
        """Tokens to verify, 1 to `most`, the anchor among them; 0 for decoding plainly.

        Args:
            certainty: the draft's probability of its most probable token, per place.
            context: length of the text.
            most: how many tokens are wanted.
        """
        widths = [w for w in self._widths if w <= most] or [1]
        takes = {w: self._costs.round(w, context) for w in widths}
        first = self._foreseen(certainty)
        self._plain = plain = 1 / self._costs.plain(context)
        if not self._rate.known:
            likely = max(widths, key=lambda w: first[w] / takes[w])
            self._count(TRIED * first[likely], TRIED * takes[likely])
        if not self._promises(max(first[w] - plain * takes[w] for w in widths)):
            self._count(self._rest, self._rest / plain)
            return 0
        price = {w: max(plain, self._rate.value) * takes[w] for w in widths}
        width = self._in_order(certainty, price) if self._ordered else _best(first, price)
        self._takes = takes[width]
        return width

    def copy(
        self, tokens: Sequence[float], certainty: Sequence[float], context: int, most: int
    ) -> int:
        """Tokens to verify with a lookup draft, the anchor among them; 0 to do without it.

        Time is worth what it brings without lookup drafts: the rate of rounds with the draft, or
        of plain decoding. Which width is best, though, is seen by the rate with them.

        Args:
            tokens: what the round is expected to bring, by its width from 1 on.
            certainty: as for `choose`, where a block is drafted already; else empty.
            context, most: as for `choose`.
        """
        most = min(most, len(tokens))
        takes = {w: self._costs.given(w, context) for w in self._copies if 1 < w <= most}
        if not takes or not (certainty or self._rate.known):
            return 0
        rate = max(1 / self._costs.plain(context), self._rate.value)
        price = max(rate, self._whole.value)
        width = max(takes, key=lambda w: tokens[w - 1] - price * takes[w])
        if tokens[width - 1] - rate * takes[width] <= self._at_hand(certainty, rate, context, most):
            return 0
        self._takes = takes[width]
        return width

    def copied(self, accepted: int) -> None:
        """Take note of the round whose width `copy` chose last."""
        self._whole.count(accepted + 1, self._takes)

    def rest(self) -> int:
        """For how many tokens to decode plainly; longer each time that nothing is promised."""
        rest, self._rest = self._rest, min(2 * self._rest, LONGEST_REST)
        self._rested += rest
        return rest

    def learn(self, certainty: Sequence[float], verified: int, accepted: int) -> None:
        """Take note of the round whose width was chosen last."""
        self._calibration.learn(certainty, verified, accepted)
        self._count(accepted + 1, self._takes)
        # Promises alone would keep up a draft that is surer of this text than it should be.
        brought = accepted + 1 - self._plain * self._takes
        self._gain += BROUGHT * (brought - self._promised) / min(self._blocks, LOOKS)
        self._rested = 0

    def time(self, width: int, context: int, seconds: float, given: bool = False) -> None:
        """Take note of what a round took, `given` with a lookup draft; width 0 is a plain token."""
        self._costs.time(width, context, seconds, given)

    def _at_hand(self, certainty: Sequence[float], rate: float, context: int, most: int) -> float:
        """What a block that is drafted already would bring beyond the time it takes from here."""
        if not certainty:
            return 0.0  # a round that drafts first brings what its time is worth
        tokens, widths = self._foreseen(certainty), [w for w in self._widths if w <= most] or [1]
        return max(tokens[w] - rate * self._costs.given(w, context) for w in widths)

    def _foreseen(self, certainty: Sequence[float]) -> dict[int, float]:
        """Expected tokens of a round by its width, from what is known before anything is drawn."""
        return self._tokens_of(certainty, 1 if self._ordered else len(certainty))

    def _promises(self, gain: float) -> bool:
        """Whether to go on drafting, where this block promises `gain` tokens beyond plain ones."""
        self._blocks, self._promised = self._blocks + 1, gain
        self._gain += (gain - self._gain) / min(self._blocks, LOOKS)
        # What is never verified teaches nothing: at first, and after long rests, try anyway.
        trying = self._calibration.rounds < TRIED or self._rested > LONGEST_REST
        if gain > 0:
            self._rest = FIRST_REST
        return gain > 0 or trying or self._gain > 0

    def _in_order(self, certainty: Sequence[float], price: Mapping[int, float]) -> int:
        """As `_best`, but each step from one width to the next knows no token it would verify."""
        for width in price:
            tokens = self._tokens_of(certainty, width)
            if _best(tokens, {w: p for w, p in price.items() if w >= width}) == width:
                return width
        raise AssertionError("the last width is the best of one")

    def _tokens_of(self, certainty: Sequence[float], known: int) -> dict[int, float]:
        """Expected tokens of a round by its width, from the first `known` probabilities."""
        chances = self._calibration.chances(certainty[:known])
        chances += [self._calibration.usual(i) for i in range(known, len(certainty))]
        reached, tokens, by_width = 1.0, 1.0, {1: 1.0}
        for place, chance in enumerate(chances):
            reached *= chance
            tokens += reached
            by_width[place + 2] = tokens
        return by_width

    def _count(self, tokens: float, seconds: float) -> None:
        self._rate.count(tokens, seconds)
        self._whole.count(tokens, seconds)


def _best(tokens: Mapping[int, float], price: Mapping[int, float]) -> int:
    """The width that brings most beyond its price; the narrowest of equals."""
    return max(price, key=lambda width: tokens[width] - price[width])
