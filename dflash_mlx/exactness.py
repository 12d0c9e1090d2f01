"""Whether sampled text has the target's distribution, and whether its seed reproduces it.

Exact speculative sampling draws every token from the target's distribution p behind the tokens
before it. Let the tokens be ordered by probability, F be the probability of all that come before
the drawn one, p its own, and v uniform in 0..1: then F + v p is uniform, independently at every
place (the randomised form of M. Rosenblatt's transform, 1952), whatever the text. So the places of
all texts are counted in equal bins and tested with Pearson's chi-square. p is computed from the
finished text, by the target alone. The first token of a text is left out: it comes from the
prefill, where nothing is drafted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import cast

import mlx.core as mx

from .decode import recent
from .generation import rounds
from .loading import Pair
from .options import Options
from .sampling import Sampling, log_distribution, process
from .ties import Reader

# How often exact sampling is called a bug.
FALSE_ALARMS = 1e-4
BINS = 17  # odd: the closed form below needs an even number of degrees of freedom
PER_BIN = 8  # expected places, at least; Pearson's test is customary from 5 on
ROWS = 64  # of the vocabulary's size, held at once


@dataclass(frozen=True)
class Sampled:
    """One text, sampled twice with the same seed.

    Attributes:
        same: whether both had the same ids.
        places: per token but the first, where it lies in the target's distribution, from 0 to 1.
    """

    seed: int
    tokens: int
    same: bool
    places: tuple[float, ...]


@dataclass(frozen=True)
class Fit:
    """Pearson's test over the places of some texts.

    Attributes:
        statistic: chi-square; None where there are too few places for three bins.
        p_value: how often exact sampling gives a statistic as large.
    """

    places: int
    bins: int
    statistic: float | None = None
    p_value: float | None = None

    @property
    def exact(self) -> bool:
        """Whether nothing speaks against exact sampling."""
        return self.p_value is None or self.p_value >= FALSE_ALARMS


def sample(pair: Pair, prompt: Sequence[int], options: Options) -> Sampled:
    """Sample a text speculatively, twice, and find its places.

    Args:
        pair: with a draft.
        prompt: ids.
        options: with a seed and a temperature above 0. Texts that are tested together need
            seeds of their own, or the same chance decides about several places.
    """
    seed = options.seed
    assert seed is not None
    options = replace(options, speculate=True)
    text, again = (
        [token for round_ in rounds(pair, prompt, options) for token in round_.tokens]
        for _ in range(2)
    )
    places = _places(pair, prompt, text, options.sampling, random.Random(seed))
    return Sampled(seed, len(text), text == again, tuple(places))


def fit(places: Sequence[float]) -> Fit:
    """Test whether `places` are uniform in 0..1."""
    bins = min(BINS, len(places) // PER_BIN)
    bins -= 1 - bins % 2
    if bins < 3:
        return Fit(len(places), 0)
    counts = [0] * bins
    for place in places:
        counts[min(int(place * bins), bins - 1)] += 1
    expected = len(places) / bins
    statistic = sum((count - expected) ** 2 for count in counts) / expected
    return Fit(len(places), bins, statistic, _tail(statistic, bins - 1))


def _places(
    pair: Pair,
    prompt: Sequence[int],
    text: Sequence[int],
    sampling: Sampling,
    chance: random.Random,
) -> list[float]:
    """Where each token of a text but the first lies in the target's distribution."""
    reader = Reader(pair.target)
    reader.prompt(prompt)
    seen = [*prompt, *text]
    places: list[float] = []
    for first in range(len(prompt), len(seen) - 1, ROWS):
        last = min(first + ROWS, len(seen) - 1)
        history = mx.stack([recent(seen[: i + 1], sampling.history) for i in range(first, last)])
        logits = process(reader.read(seen[first:last]), history, sampling)
        p = mx.exp(log_distribution(logits, sampling))
        own = mx.take_along_axis(p, mx.array(seen[first + 1 : last + 1])[:, None], axis=-1)
        before = cast(list[float], mx.where(p > own, p, 0).sum(axis=-1).tolist())
        # Tokens of equal probability share their part.
        shared = cast(list[float], mx.where(p == own, p, 0).sum(axis=-1).tolist())
        places += [b + chance.random() * s for b, s in zip(before, shared, strict=True)]
    return places


def _tail(statistic: float, freedom: int) -> float:
    """Probability that chi-square with an even number of degrees of freedom is larger."""
    half = statistic / 2
    term = total = 1.0
    for k in range(1, freedom // 2):
        term *= half / k
        total += term
    return min(1.0, exp(-half) * total)
