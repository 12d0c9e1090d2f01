"""Guided text has exactly the distribution of guided plain decoding, and faults are noticed.

A toy target knows its place alone, so that the probability of every text of a grammar can be
computed. Texts are drawn by rounds of random widths with the steps that decoding uses.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from dflash_mlx import along
from dflash_mlx.along import Candidates, Drawn, Path, log_q, walk
from dflash_mlx.decode import Result
from dflash_mlx.guide import Guide, Matcher
from dflash_mlx.guided import VerifyStep, follow
from dflash_mlx.ranks import ALONE
from dflash_mlx.sampling import Sampling, log_distribution, restrict

from .families import VOCAB
from .guides import EOS, tokenizer, words
from .test_accept import chi_square

PLACES, LENGTH, DRAWS = 3, 5, 5_000
GUIDE = Guide.regex("a?[bc]{1,2}d?|ab(a|cc)*|cab[abd]")
USED = [*tokenizer().encode("cbad"), *tokenizer().encode("ab"), EOS]
Text = tuple[int, ...]


class Remembering(Matcher):
    """A matcher that asks once for what it is asked often."""

    def __init__(self) -> None:
        super().__init__(GUIDE, words())
        self._known: dict[Text, tuple[bool, np.ndarray, list[int]]] = {}
        self._text: Text = ()

    def _now(self) -> tuple[bool, np.ndarray, list[int]]:
        if self._text not in self._known:
            matcher = Matcher(GUIDE, words())
            take(matcher, self._text)
            self._known[self._text] = matcher.ended, matcher.allowed(), matcher.forced()
        return self._known[self._text]

    @property
    def ended(self) -> bool:
        return self._now()[0]

    def allowed(self) -> np.ndarray:
        return self._now()[1]

    def forced(self) -> list[int]:
        return list(self._now()[2])

    def take(self, token: int) -> None:
        self._text += (token,)

    def back(self, count: int) -> None:
        self._text = self._text[: len(self._text) - count]


class Toy:
    """A target with a table [places, vocab] of logits in place of layers."""

    ranks = ALONE

    def __init__(self) -> None:
        logits = 1.2 * mx.random.normal((2 * LENGTH, VOCAB), key=mx.random.key(1))
        used = mx.zeros(VOCAB).at[mx.array(USED)].add(4.0)
        self.table = logits + used

    def forward(self, ids: mx.array, start: int, state: Any) -> tuple[mx.array, None, Any]:
        return self.table[None, start : start + ids.shape[1]], None, state

    def logits(self, hidden: mx.array) -> mx.array:
        return hidden


def probabilities(toy: Toy, sampling: Sampling) -> dict[Text, float]:
    """Of every text, by guided plain decoding."""
    found: dict[Text, float] = {}
    matcher = Remembering()

    def go(text: Text, so_far: float) -> None:
        if matcher.ended or len(text) == LENGTH:
            found[text] = so_far
            return
        row = restrict(toy.table[len(text)][None], mx.array(matcher.allowed()[None]))
        probs = np.exp(np.array(log_distribution(row, sampling)[0], np.float64))
        for token in np.nonzero(probs)[0].tolist():
            matcher.take(token)
            go((*text, token), so_far * probs[token])
            matcher.back(1)

    go((), 1.0)
    return found


def candidates(rng: np.random.Generator, toy: Toy, place: int, second: bool) -> Candidates:
    """Drafts that know something of the target; of either kind."""
    ids = np.stack([rng.permutation([*USED, 40, 41])[:6] for _ in range(PLACES)]).astype(np.int32)
    rows = np.array(toy.table)[place : place + PLACES]
    scores = np.take_along_axis(rows, ids, axis=1)[:, None]
    shape = (PLACES, 7, 6) if second else scores.shape
    return Candidates(ids, (scores + 2 * rng.normal(size=shape)).astype(np.float32), None)


def texts(sampling: Sampling, second: bool = False) -> Counter[Text]:
    """Counts of `DRAWS` texts, each written by rounds."""
    toy, rng, matcher = Toy(), np.random.default_rng(5), Remembering()
    blocks = [candidates(rng, toy, place, second) for place in range(LENGTH)]
    open_: list[Text] = [()] * DRAWS
    done: Counter[Text] = Counter()
    keys = iter(mx.random.split(mx.random.key(9), 200))
    while open_:
        groups: dict[tuple[int, int], list[tuple[Text, Path]]] = {}
        for text in open_:
            noise = rng.gumbel(size=(PLACES, 6)).astype(np.float32)
            block = blocks[len(text)]._replace(noise=noise)
            take(matcher, text)
            path = walk(matcher, int(rng.integers(PLACES + 1)), lambda b=block: b, sampling)
            matcher.back(len(text))
            groups.setdefault((len(text), len(path.drawn)), []).append((text, path))
        open_ = []
        for (start, drafted), group in groups.items():
            packed = verified(toy, sampling, start, [path for _, path in group], next(keys))
            for (text, _), (accepted, *tokens) in zip(group, packed, strict=True):
                take(matcher, text)
                kept = Result(tuple(tokens[: accepted + 1]), drafted, accepted)
                text += follow(matcher, kept, LENGTH - len(text)).tokens
                over = matcher.ended or len(text) == LENGTH
                matcher.back(len(text))
                if over:
                    done[text] += 1
                else:
                    open_.append(text)
    return done


def take(matcher: Matcher, text: Text) -> None:
    for token in text:
        matcher.take(token)


def verified(
    toy: Any, sampling: Sampling, start: int, paths: Sequence[Path], key: mx.array
) -> list[list[int]]:
    """What the target's step makes of paths of one length."""
    drafted = len(paths[0].drawn)
    step, empty = VerifyStep(toy, sampling, drafted + 1), mx.zeros(0, mx.int32)

    def one(
        block: mx.array, ids: mx.array, logq: mx.array, allowed: mx.array, key: mx.array
    ) -> Any:
        among = (ids, logq) if drafted else (None, None)
        return step(block, *among, allowed, start, None, empty, key)[0]

    none = np.zeros((0, 6), np.int32), np.zeros((0, 6), np.float32)
    among = [path.rows() if drafted else none for path in paths]
    stacks = (
        np.array([[0, *path.tokens] for path in paths], np.int32),
        np.stack([padded(ids, 1) for ids, _ in among]),
        np.stack([padded(logq, -np.inf) for _, logq in among]),
        np.stack([path.allowed for path in paths]),
    )
    packed = mx.vmap(one)(*map(mx.array, stacks), mx.random.split(key, len(paths)))
    return np.array(packed).tolist()


def padded(rows: np.ndarray, value: float) -> np.ndarray:
    return np.pad(rows, ((0, 0), (0, 6 - rows.shape[1])), constant_values=value)


def score(sampling: Sampling, second: bool = False) -> float:
    """How far texts are from those of guided plain decoding, as a z-score."""
    expected, found = probabilities(Toy(), sampling), texts(sampling, second)
    assert set(found) <= set(expected) and sum(found.values()) == DRAWS
    assert len(expected) > 10
    counts = np.array([found[text] for text in expected])
    return chi_square(counts, np.array([*expected.values()]))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The few distributions of this test are computed once."""

    @cache
    def remembered(scores: bytes, sampling: Sampling) -> np.ndarray:
        return log_q(np.frombuffer(scores, np.float32), sampling)

    monkeypatch.setattr(along, "log_q", lambda scores, s: remembered(scores.tobytes(), s))


WARM = Sampling(temperature=1.0)
FILTERED = Sampling(temperature=1.3, top_p=0.9, min_p=0.02)


@pytest.mark.parametrize(("sampling", "second"), [(WARM, False), (FILTERED, True)])
def test_texts_have_the_targets_distribution(sampling: Sampling, second: bool) -> None:
    assert score(sampling, second) < 5


def test_a_q_that_is_not_what_was_drawn_from_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn among allowed candidates, compared as if drawn among all."""
    draw = along._draw

    def unmasked(all_: Candidates, drawn: Any, allowed: Any, sampling: Sampling) -> Drawn | None:
        one = draw(all_, drawn, allowed, sampling)
        return one and one._replace(logq=along.log_q(along._scores(all_, drawn), sampling))

    monkeypatch.setattr(along, "_draw", unmasked)
    assert score(WARM) > 8


def test_a_block_cut_by_the_drawn_token_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn among all candidates, dropped if forbidden: whether there is a token looks at it."""
    draw = along._draw

    def cutting(all_: Candidates, drawn: Any, allowed: Any, sampling: Sampling) -> Drawn | None:
        one = draw(all_, drawn, np.full_like(allowed, 0xFFFFFFFF), sampling)
        assert one is not None
        return one if allowed[one.token // 32] >> np.uint32(one.token % 32) & 1 else None

    monkeypatch.setattr(along, "_draw", cutting)
    assert score(WARM) > 8
