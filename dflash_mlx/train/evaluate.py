"""How good a draft is: tokens per round on prompts it was never trained on, by real decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..drafts.dflash import DFlashDraft
from ..generation import rounds
from ..loading import Pair
from ..options import Options
from ..stats import Stats
from .baselines import NGrams, Propose, lookup, tokens_per_round
from .packing import Document


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt as the model gets it."""

    ids: tuple[int, ...]
    kind: str = ""


@dataclass(frozen=True)
class Count:
    """Tokens and rounds."""

    tokens: int = 0
    rounds: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.tokens + other.tokens, self.rounds + other.rounds)

    @property
    def ratio(self) -> float:
        """Tokens per round."""
        return self.tokens / self.rounds if self.rounds else 0.0


@dataclass(frozen=True)
class Evaluation:
    """Tokens per round on held-out prompts, greedy.

    Attributes:
        draft: with the draft, by kind of prompt.
        lookup, ngrams: on the same texts, without a network; see `baselines`.
        step: steps of training done.
    """

    draft: dict[str, Count] = field(default_factory=dict)
    lookup: dict[str, Count] = field(default_factory=dict)
    ngrams: dict[str, Count] = field(default_factory=dict)
    step: int = 0

    @property
    def tokens_per_round(self) -> float:
        """Of the draft, over all rounds."""
        return overall(self.draft)

    def as_dict(self) -> dict[str, Any]:
        """Ratios by their names, for JSON."""
        ways = {"draft": self.draft, "lookup": self.lookup, "ngrams": self.ngrams}
        return {
            "tokens_per_round": {way: round(overall(c), 4) for way, c in ways.items()},
            "by_kind": {
                kind: {way: round(c[kind].ratio, 4) for way, c in ways.items()}
                for kind in sorted(self.draft)
            },
            "rounds": sum(c.rounds for c in self.draft.values()),
        }


def overall(counts: dict[str, Count]) -> float:
    """Tokens per round over all kinds."""
    return sum(counts.values(), Count()).ratio


class Judge:
    """Decodes the same prompts again and again.

    Args:
        prompts: held out.
        trained_on: texts that the n-gram table is counted from.
        options: how much to decode; sampling stays greedy.
    """

    def __init__(
        self, prompts: Sequence[Prompt], trained_on: Sequence[Document], options: Options
    ) -> None:
        self._prompts = prompts
        self._options = options
        self._ngrams = NGrams(trained_on)

    def __call__(self, pair: Pair, progress: Callable[[int], None] = lambda _: None) -> Evaluation:
        """Decode with a pair whose draft is prepared.

        Args:
            progress: called with the prompts done.
        """
        assert pair.draft is not None
        width = self._options.width(pair.draft.config.block_size)
        found = Evaluation()
        for done, prompt in enumerate(self._prompts, 1):
            text, stats = self._decode(pair, prompt)
            _add(found.draft, prompt.kind, Count(stats.round_tokens, stats.rounds))
            ways: tuple[tuple[dict[str, Count], Propose], ...] = (
                (found.lookup, lookup),
                (found.ngrams, self._ngrams),
            )
            for counts, propose in ways:
                _add(counts, prompt.kind, Count(*tokens_per_round(text, propose, width)))
            progress(done)
        return found

    def _decode(self, pair: Pair, prompt: Prompt) -> tuple[Document, Stats]:
        stats = Stats()
        ids = list(prompt.ids)
        for number, round_ in enumerate(rounds(pair, prompt.ids, self._options)):
            stats.add(round_, first=number == 0)
            ids += round_.tokens
        return Document(np.array(ids, np.int32), len(prompt.ids)), stats


def with_draft(pair: Pair, draft: DFlashDraft) -> Pair:
    """The same pair with another draft."""
    target = pair.target.with_draft_vocabulary(draft.vocabulary)
    return replace(pair, target=target, draft=draft, steps={}, trials={})


def _add(counts: dict[str, Count], kind: str, more: Count) -> None:
    counts[kind] = counts.get(kind, Count()) + more
