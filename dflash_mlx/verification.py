"""Greedy output held against plain decoding: the same, a tie, or a bug.

After a tie (`ties.py`) the two texts go separate ways, so the rest is judged with the speculative
text given: each of its tokens has to be the best one, or tied with it, behind the tokens before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from .generation import rounds
from .loading import Pair
from .options import Options
from .sampling import Sampling
from .stats import Stats
from .ties import Verdict, judge, read_twice, tolerance

BEHIND = 12  # tokens shown before a divergence


@dataclass(frozen=True)
class Choice:
    """A token and its logit where a choice was made, by the target alone in passes of one row."""

    id: int
    text: str
    logit: float | None


@dataclass(frozen=True)
class Divergence:
    """A place where the speculative text has another token than plain decoding would choose.

    Attributes:
        position: how many generated tokens stand before it.
        behind: the end of the text before it.
        plain, speculative: the two tokens; None where the text has ended.
        top: the two most probable tokens.
        margin: between those two.
        gap: how far the speculative token lies behind the best one.
    """

    position: int
    behind: str
    plain: Choice | None
    speculative: Choice | None
    top: tuple[Choice, Choice]
    margin: float
    gap: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """One prompt, decoded plainly and speculatively.

    Attributes:
        tokens: of the speculative text.
        ties: tokens that are not the best one behind the tokens before them, but tied with it.
        tolerance: up to which gap a token counts as tied; None where nothing differed.
        divergences: the first one, and the first one that is a bug if that is another.
    """

    verdict: Verdict
    prompt_tokens: int
    tokens: int
    tokens_per_round: float
    ties: int = 0
    tolerance: float | None = None
    noise: float | None = None
    divergences: tuple[Divergence, ...] = ()


def compare(pair: Pair, prompt: Sequence[int], options: Options) -> Comparison:
    """Decode greedily with and without the draft and explain the difference, if there is one.

    Args:
        pair: with a draft.
        prompt: ids.
        options: `speculate` and the temperature are set here.
    """
    options = replace(options, sampling=replace(options.sampling, temperature=0.0))
    plain, _ = _decode(pair, prompt, replace(options, speculate=False, lookup="off"))
    found, stats = _decode(pair, prompt, replace(options, speculate=True))
    assert pair.draft is not None
    width = options.width(pair.draft.config.block_size)
    comparison = explain(pair, prompt, plain, found, options.sampling, width)
    return replace(comparison, tokens_per_round=round(stats.tokens_per_round, 4))


def explain(
    pair: Pair,
    prompt: Sequence[int],
    plain: list[int],
    found: list[int],
    sampling: Sampling,
    width: int,
) -> Comparison:
    """Explain the difference between two greedy texts, if there is one.

    Args:
        pair: whose target made both.
        prompt: ids before both.
        plain: the text decoded one token at a time.
        found: the text to be judged; without a draft, no tokens per round are known.
        sampling: with temperature 0.
        width: tokens verified per round.
    """
    same = Comparison("identical", len(prompt), len(found), 0.0)
    if found == plain:
        return same
    case = _Case(pair, prompt, plain, found, sampling, width)
    divergences = case.divergences()
    return replace(
        same,
        verdict="bug" if any(d.verdict == "bug" for d in divergences) else "tie",
        ties=case.ties,
        tolerance=case.allowed,
        noise=max(p.noise for p in case.positions),
        divergences=tuple(divergences),
    )


class _Case:
    """Two texts that differ, and what the target says about the speculative one."""

    def __init__(
        self,
        pair: Pair,
        prompt: Sequence[int],
        plain: list[int],
        found: list[int],
        sampling: Sampling,
        width: int,
    ) -> None:
        self.pair, self.plain, self.found = pair, plain, found
        self.first = _first_difference(plain, found)
        # Where the speculative text ended too soon, the place of its missing token is read, too.
        text = found if self.first < len(found) else plain[: self.first + 1]
        self._read = partial(read_twice, pair.target, prompt, text, width, sampling)
        self._judge_by((0,))
        if any(d.verdict == "bug" for d in self.divergences()):
            # Rounding depends on the row of a block. Before calling it a bug, try them all.
            self._judge_by(range(width))

    def _judge_by(self, offsets: Iterable[int]) -> None:
        self.positions = self._read(offsets=offsets)
        self.allowed = tolerance(self.positions, self.pair.target.dtype)

    @property
    def ties(self) -> int:
        """How many tokens are not the best one, but tied with it."""
        return sum(judge(p.gap, self.allowed) == "tie" for p in self.positions)

    def divergences(self) -> list[Divergence]:
        """The first difference, and behind it the first token that is neither best nor tied."""
        found = [self._divergence(self.first, self._plain_token())]
        if found[0].verdict != "bug":
            for index in range(self.first + 1, len(self.positions)):
                position = self.positions[index]
                if judge(position.gap, self.allowed) == "bug":
                    return [*found, self._divergence(index, position.best[0])]
        return found

    def _plain_token(self) -> int | None:
        return self.plain[self.first] if self.first < len(self.plain) else None

    def _divergence(self, index: int, plain: int | None) -> Divergence:
        position = self.positions[index]
        found = self.found[index] if index < len(self.found) else None
        logits = dict([position.second, position.best, (position.token, position.logit)])
        gaps = [position.best[1] - logits.get(i, -inf) for i in (plain, found) if i is not None]
        tied = len(gaps) == 2 and all(judge(gap, self.allowed) != "bug" for gap in gaps)
        return Divergence(
            position=index,
            behind=self.pair.tokenizer.decode(self.found[:index][-BEHIND:]),
            plain=self._choice(plain, logits),
            speculative=self._choice(found, logits),
            top=(self._token(*position.best), self._token(*position.second)),
            margin=position.margin,
            gap=None if found is None else position.gap,
            verdict="tie" if tied else "bug",
        )

    def _choice(self, id_: int | None, logits: dict[int, float]) -> Choice | None:
        return None if id_ is None else self._token(id_, logits.get(id_))

    def _token(self, id_: int, logit: float | None) -> Choice:
        return Choice(id_, self.pair.tokenizer.decode([id_]), logit)


def _decode(pair: Pair, prompt: Sequence[int], options: Options) -> tuple[list[int], Stats]:
    ids: list[int] = []
    stats = Stats()
    for round_ in rounds(pair, prompt, options, stats=stats):
        stats.add(round_, first=not ids)
        ids += round_.tokens
    return ids, stats


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)
