"""What may be called a tie between two tokens, measured on the text itself.

Verifying several rows at once adds up in another order than decoding one by one, so that the two
round differently; where the two most probable tokens are as good as equal, either may come out.
To see how much that is, the target alone reads a text twice, in passes of one row and in passes
of a whole block, without drafts and without rollbacks. If the logits of the two readings differ
by at most d, they can disagree about the best token only where its lead is at most 2 d. A token
that is further behind the best one has another cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Literal, NamedTuple, cast

import mlx.core as mx

from .decode import recent
from .sampling import Sampling, process
from .targets.base import Target

CONTENDERS = 8  # the most probable tokens, on whose logits the readings are compared


class Precision(NamedTuple):
    """What rounding does to logits, relative to the largest one.

    Attributes:
        step: the distance between neighbouring numbers.
        typical: by how much the readings may differ at most places.
        limit: how far behind the best token one may lie that rounding chose.
    """

    step: float
    typical: float
    limit: float


# In the reduced models of the tests and in the embedded pair (`tests.measure.flips`) the readings
# differed by up to 2e-5 in float32, by 0.011 in float16 and 0.06 in bfloat16, at most places by
# far less. In low precision experts can be tied, too: where another one is chosen the logits jump,
# in those small models by up to 0.46 of the largest, at every place behind it. float32 proves most.
FLOAT32 = Precision(2.0**-23, 2.0**-15, 2.0**-13)
FLOAT16 = Precision(2.0**-10, 2.0**-6, 1.0)
BFLOAT16 = Precision(2.0**-7, 2.0**-5, 1.0)
Verdict = Literal["identical", "tie", "bug"]


@dataclass(frozen=True)
class Position:
    """One place of a text, as the target alone sees it; logits are those of passes of one row.

    Attributes:
        token: what stands there.
        logit: its logit.
        best, second: ids and logits of the two most probable tokens.
        wide: id and logit of the token that passes of a whole block find most probable.
        noise: how far the logits of the readings lie apart, over the contenders.
    """

    token: int
    logit: float
    best: tuple[int, float]
    second: tuple[int, float]
    wide: tuple[int, float]
    noise: float

    @property
    def gap(self) -> float:
        """How far the token lies behind the best one."""
        return self.best[1] - self.logit

    @property
    def margin(self) -> float:
        """How far the second token lies behind the best one."""
        return self.best[1] - self.second[1]


def judge(gap: float, tolerance: float) -> Verdict:
    """What it means that a token lies `gap` behind the best one; NaN is a bug, too."""
    if gap <= 0:
        return "identical"
    return "tie" if gap <= tolerance else "bug"


def tolerance(positions: Sequence[Position], dtype: mx.Dtype) -> float:
    """How far behind the best token a tied one may lie.

    Twice the largest difference between the readings, at least two rounding steps and at most
    what rounding may do. If the readings differ by more than is typical at half of the places,
    they do not compute the same, and excuse no more than those steps.
    """
    precision = _precision(dtype)
    scale = max(abs(p.best[1]) for p in positions)
    noise = [p.noise for p in positions]
    steps = 2 * precision.step * scale
    if not median(noise) <= precision.typical * scale:
        return steps
    return min(max(2 * max(noise), steps), precision.limit * scale)


def read_twice(
    target: Target,
    prompt: Sequence[int],
    text: Sequence[int],
    width: int,
    sampling: Sampling | None = None,
    offsets: Iterable[int] = (0,),
) -> list[Position]:
    """Let the target alone read `text` behind `prompt` in passes of one row and of `width` rows.

    Args:
        offsets: rows of the first of the wide passes, 0 for `width`; with more than one, the text
            is read in wide passes once for each, so that every token stands at every row.

    Returns:
        one `Position` per token of the text.
    """
    sampling, (first, *more) = sampling or Sampling(), tuple(offsets)
    what = {"prompt": list(prompt), "text": list(text), "width": width}
    how = {"sampling": asdict(sampling), "offsets": [first, *more]}
    with target.ranks.running("read", **what, **how):
        given = _Given(target, prompt, text, sampling)
        ids, narrow = given.contenders(given.best(width, first))
        noise = given.noise(ids, narrow, width, first)
        for offset in more:
            noise = mx.maximum(noise, given.noise(ids, narrow, width, offset))
        return _positions(ids, narrow, noise)


class Reader:
    """The target alone, reading a given text in passes of any width."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._cache = target.new_cache()

    def read(self, ids: Sequence[int]) -> mx.array:
        """Logits behind each of the next ids [len(ids), vocab]."""
        return self._target.logits(self._pass(ids))[0]

    def prompt(self, ids: Sequence[int], chunk: int = 512) -> mx.array:
        """Logits behind the last of `ids` [1, vocab]."""
        for first in range(0, len(ids), chunk):
            hidden = self._pass(ids[first : first + chunk])
        return self._target.logits(hidden[:, -1:])[0]

    def _pass(self, ids: Sequence[int]) -> mx.array:
        start = self._cache.length
        state = self._cache.begin(start, len(ids), fixed=False)
        hidden, _, state = self._target.forward(mx.array([list(ids)], mx.int32), start, state)
        self._cache.update(state)
        self._cache.commit(len(ids))
        mx.eval(hidden, self._cache.arrays())
        return hidden


@dataclass(frozen=True)
class _Given:
    """A text that the target alone reads."""

    target: Target
    prompt: Sequence[int]
    text: Sequence[int]
    sampling: Sampling

    def best(self, width: int, offset: int) -> mx.array:
        """Per place the most probable token in passes of `width` rows [len(text)]."""
        best = [mx.argmax(rows, axis=-1) for _, rows in self._read(width, offset)]
        return mx.concatenate(best)

    def contenders(self, wide: mx.array) -> tuple[mx.array, mx.array]:
        """Per place the most probable tokens in no order, the one that stands there, and `wide`.

        Returns:
            ids and logits of passes of one row, both [len(text), CONTENDERS + 2].
        """
        ids, logits = [], []
        for first, rows in self._read(1):
            top = mx.argpartition(-rows, CONTENDERS - 1, axis=-1)[:, :CONTENDERS]
            token = mx.array([[self.text[first]]], top.dtype)
            ids.append(mx.concatenate([top, token, wide[first, None, None]], axis=-1))
            logits.append(mx.take_along_axis(rows, ids[-1], axis=-1))
            mx.eval(ids[-1], logits[-1])
        return mx.concatenate(ids), mx.concatenate(logits)

    def noise(self, ids: mx.array, narrow: mx.array, width: int, offset: int) -> mx.array:
        """Per place, how far the contenders' logits differ in passes of `width` rows."""
        apart = []
        for first, rows in self._read(width, offset):
            part = slice(first, first + rows.shape[0])
            wide = mx.take_along_axis(rows, ids[part], axis=-1)
            apart.append(mx.abs(wide - narrow[part]).max(axis=-1))
            mx.eval(apart[-1])
        return mx.concatenate(apart)

    def _read(self, width: int, offset: int = 0) -> Iterator[tuple[int, mx.array]]:
        """Places in ascending order, each time the first and processed logits [n, vocab]."""
        reader = Reader(self.target)
        yield 0, self._process(reader.prompt(self.prompt), 0)
        first, size = 0, offset or width
        while first < len(self.text) - 1:
            block = list(self.text[first : min(first + size, len(self.text) - 1)])
            # Rows behind the text's end fill the block; no row sees those behind it.
            rows = reader.read(block + block[-1:] * (size - len(block)))[: len(block)]
            yield first + 1, self._process(rows, first + 1)
            first, size = first + size, width

    def _process(self, rows: mx.array, first: int) -> mx.array:
        size, seen = self.sampling.history, [*self.prompt, *self.text]
        places = range(len(self.prompt) + first, len(self.prompt) + first + rows.shape[0])
        return process(rows, mx.stack([recent(seen[:i], size) for i in places]), self.sampling)


def _positions(ids: mx.array, narrow: mx.array, noise: mx.array) -> list[Position]:
    chosen = cast(list[list[int]], ids.tolist())
    logits = cast(list[list[float]], narrow.tolist())
    positions = []
    for i, apart in enumerate(cast(list[float], noise.tolist())):
        *top, token, wide = zip(chosen[i], logits[i], strict=True)
        # Of equal ones, greedy decoding takes the first.
        first, second = sorted(top, key=lambda choice: (-choice[1], choice[0]))[:2]
        positions.append(Position(*token, first, second, wide, apart))
    return positions


def _precision(dtype: mx.Dtype) -> Precision:
    if dtype == mx.bfloat16:
        return BFLOAT16
    # A GPU may multiply float32 in TF32, which keeps as many digits as float16.
    if dtype == mx.float16 or mx.default_device().type == mx.gpu:
        return FLOAT16
    return FLOAT32
