"""Tokens drafted along a grammar, place by place, on the host. `guided` says why that is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .guide import Matcher
from .sampling import Sampling, log_distribution


class Candidates(NamedTuple):
    """Candidates on the host, as `shortlist.Candidates`, and noise to draw with.

    Attributes:
        noise: float32 [n, k], Gumbel's; None if sampling is greedy.
    """

    ids: np.ndarray
    scores: np.ndarray
    noise: np.ndarray | None


class Drawn(NamedTuple):
    """A drafted token: int32 [k], what it was drawn among, and float32 [k], log q of these.

    A token that was forced has k = 1.
    """

    token: int
    ids: np.ndarray
    logq: np.ndarray


class Path(NamedTuple):
    """Tokens drafted along a grammar; masks of all rows to verify, uint32 [n + 1, words]."""

    drawn: list[Drawn]
    allowed: np.ndarray

    @property
    def tokens(self) -> list[int]:
        """The drafted ids."""
        return [one.token for one in self.drawn]

    def along(self, tokens: Sequence[int]) -> Path:
        """The path of these tokens; if it is another, no mask and no distribution holds."""
        if list(tokens) == self.tokens:
            return self
        drawn = [Drawn(token, np.array([token]), np.zeros(1)) for token in tokens]
        shape = (len(drawn) + 1, self.allowed.shape[1])
        return Path(drawn, np.full(shape, 0xFFFFFFFF, np.uint32))

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """What all were drawn among, int32 [n, k], and log q of these, float32 [n, k]."""
        size = max(one.ids.size for one in self.drawn)
        ids = np.empty((len(self.drawn), size), np.int32)
        logq = np.full(ids.shape, -np.inf, np.float32)
        for row, one in enumerate(self.drawn):
            ids[row] = 1 if one.token == 0 else 0  # with q = 0 where nothing else is
            ids[row, : one.ids.size], logq[row, : one.ids.size] = one.ids, one.logq
        return ids, logq


def walk(matcher: Matcher, places: int, ask: Callable[[], Candidates], sampling: Sampling) -> Path:
    """Draft along the grammar; the matcher ends where it was.

    Args:
        matcher: behind the anchor.
        places: how many tokens at most.
        ask: brings the candidates of all places; not called where the grammar leaves no choice.
        sampling: how the target's tokens are chosen.
    """
    drawn: list[Drawn] = []
    allowed, forced = [matcher.allowed()], matcher.forced()
    candidates: Candidates | None = None
    while len(drawn) < places and not matcher.ended:
        if forced:
            token = forced.pop(0)
            one: Drawn | None = Drawn(token, np.array([token]), np.zeros(1))
        else:
            candidates = candidates or ask()
            one = _draw(candidates, drawn, allowed[-1], sampling)
        if one is None:
            break
        drawn.append(one)
        matcher.take(one.token)
        allowed.append(matcher.allowed())
        forced = forced or matcher.forced()
    matcher.back(len(drawn))
    return Path(drawn, np.stack(allowed))


def _draw(
    candidates: Candidates, drawn: Sequence[Drawn], allowed: np.ndarray, sampling: Sampling
) -> Drawn | None:
    """The next token, drawn among the candidates that are allowed; None if there is none."""
    ids = candidates.ids[len(drawn)]
    legal = (allowed[ids // 32] >> (ids % 32).astype(np.uint32)) & 1 == 1
    if not legal.any():
        return None
    scores = np.where(legal, _scores(candidates, drawn), -np.inf).astype(np.float32)
    if candidates.noise is None:
        return Drawn(int(ids[scores.argmax()]), ids, scores)
    logq = log_q(scores, sampling)
    # Gumbel's trick: the largest of log q + noise is drawn from q.
    return Drawn(int(ids[(logq + candidates.noise[len(drawn)]).argmax()]), ids, logq)


def _scores(candidates: Candidates, drawn: Sequence[Drawn]) -> np.ndarray:
    """Of the next place, behind the token before it if that counts and is a candidate."""
    if candidates.scores.shape[1] == 1 or not drawn:
        index = 0
    else:
        (same,) = np.nonzero(candidates.ids[len(drawn) - 1] == drawn[-1].token)
        index = int(same[0]) if len(same) else -1
    scores: np.ndarray = candidates.scores[len(drawn), index]
    return scores


def log_q(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution that scores [k] stand for."""
    with mx.stream(mx.cpu):  # too small to wake a GPU for
        return np.array(log_distribution(mx.array(scores)[None], sampling)[0])
