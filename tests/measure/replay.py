"""Plays recorded texts: what a way to choose widths takes for one, and the fastest way there is.

`record_rounds` says what is in a record.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dflash_mlx.costs import CostCurve
from dflash_mlx.lookup import Lookup
from dflash_mlx.width import Policy

from .record_rounds import leading

RECORD = Path(__file__).parents[1] / "data" / "rounds.jsonl"
PIECE = 40  # tokens of one kind in the mixed text


@dataclass(frozen=True)
class Text:
    """An answer, and what the draft says of every token of it but the last.

    Attributes:
        kind: of text.
        prompt: tokens of the prompt.
        certainty: the draft's probabilities behind each token.
        agreed: how many drafted tokens the answer agrees with, behind each token.
        ids: prompt and answer; empty where lookup drafts do not matter.
    """

    kind: str
    prompt: int
    certainty: list[list[float]]
    agreed: list[int]
    ids: list[int] = field(default_factory=list)


class Rule(Protocol):
    """Chooses widths, as `adaptive.Chooser`."""

    def choose(self, certainty: Sequence[float], context: int, most: int) -> int: ...

    def rest(self) -> int: ...

    def learn(self, certainty: Sequence[float], verified: int, accepted: int) -> None: ...


def read(path: Path) -> dict[str, list[Text]]:
    """Recorded texts by kind, and one that changes from kind to kind."""
    kinds: dict[str, list[Text]] = {}
    for line in path.read_text().splitlines():
        text = Text(**json.loads(line))
        kinds.setdefault(text.kind, []).append(text)
    kinds["mixed"] = [mixed([text for texts in kinds.values() for text in texts])]
    return kinds


def mixed(texts: Sequence[Text]) -> Text:
    """Pieces of all texts in turn, behind all of their prompts."""
    prompts = [token for text in texts for token in text.ids[: text.prompt]]
    whole = Text("mixed", len(prompts), [], [], prompts)
    for first in range(0, max(len(t.agreed) for t in texts), PIECE):
        for text in texts:
            whole.certainty.extend(text.certainty[first : first + PIECE])
            whole.agreed.extend(text.agreed[first : first + PIECE])
            whole.ids.extend(text.ids[text.prompt :][: len(text.agreed)][first : first + PIECE])
    whole.ids.append(texts[-1].ids[-1])
    return whole


def seconds(
    text: Text, rule: Rule, curve: CostCurve, end: int | None = None, copies: Policy | None = None
) -> float:
    """What the first `end` tokens of a text take.

    Args:
        text: what is played.
        rule: chooses widths.
        curve: what passes take.
        end: all of them if None.
        copies: decides about lookup drafts; without it there are none.
    """
    replay = Replay(text, rule, curve, copies)
    end = min(end or len(text.agreed), len(text.agreed))
    while replay.place < end:
        replay.step()
    return replay.taken


class Replay:
    """The order of things in `adaptive.AdaptiveDecoder`."""

    def __init__(
        self, text: Text, rule: Rule, curve: CostCurve, copies: Policy | None = None
    ) -> None:
        self._text, self._rule, self._curve, self._copies = text, rule, curve, copies
        self._lookup = Lookup()
        self._drafted, self._resting = False, 0
        self.place, self.taken = 0, 0.0

    def step(self) -> None:
        """One round, or one token decoded plainly."""
        if self._copies is not None and self._copied(self._copies):
            return
        certainty, context = self._text.certainty[self.place], self._text.prompt + self.place
        if self._resting == 0:
            if not self._drafted:
                self.taken += self._curve.drafting(context) + self._curve.host
            self._drafted = True
            width = self._rule.choose(certainty, context, len(self._text.agreed) - self.place)
            if width:
                accepted = min(self._text.agreed[self.place], width - 1)
                self._rule.learn(certainty, width - 1, accepted)
                self._advance(accepted + 1, self._curve.round(width, context))
                return
            self._drafted, self._resting = False, self._rule.rest()
        self._advance(1, self._curve.plain(context))
        self._resting -= 1

    def _copied(self, policy: Policy) -> bool:
        """Whether this round verified a lookup draft."""
        text, anchor = self._text, self._text.prompt + self.place
        match = self._lookup.follow(text.ids[:anchor], text.ids[anchor])
        if match is None:
            return False
        certainty = text.certainty[self.place] if self._drafted else ()
        left = len(text.agreed) - self.place
        width = policy.copy(self._lookup.expected(match), certainty, anchor, left)
        if not width:
            return False
        accepted = leading(list(match.tokens[: width - 1]), text.ids[anchor + 1 :])
        policy.copied(accepted)
        self._drafted = False
        self._advance(accepted + 1, self._curve.given(width, anchor))
        return True

    def _advance(self, tokens: int, took: float) -> None:
        self.place, self.taken = self.place + tokens, self.taken + took


def copied_tokens(text: Text) -> list[int]:
    """How many tokens of a lookup draft the answer agrees with, behind each token."""
    lookup, found = Lookup(), []
    for anchor in range(text.prompt, text.prompt + len(text.agreed)):
        match = lookup.follow(text.ids[:anchor], text.ids[anchor])
        found.append(leading(list(match.tokens), text.ids[anchor + 1 :]) if match else 0)
    return found


def oracle(
    text: Text, curve: CostCurve, widths: Sequence[int], copies: Sequence[int] = ()
) -> float:
    """The fastest way through a text, by dynamic programming from its end.

    Args:
        text: what is played.
        curve: what passes take.
        widths: of rounds with the draft.
        copies: of rounds with lookup drafts.
    """
    count = len(text.agreed)
    found = copied_tokens(text) if copies else []
    drafted, bare = [0.0] * (count + 1), [0.0] * (count + 1)
    for place in range(count - 1, -1, -1):
        context, left = text.prompt + place, count - place
        rounds = [
            curve.round(w, context) + drafted[place + min(text.agreed[place], w - 1) + 1]
            for w in widths
            if w <= left
        ]
        without = [
            curve.given(w, context) + bare[place + min(found[place], w - 1) + 1]
            for w in copies
            if 1 < w <= left
        ]
        without.append(curve.plain(context) + bare[place + 1])
        drafted[place] = min(*without, *rounds)
        bare[place] = min(*without, curve.drafting(context) + curve.host + min(rounds))
    return bare[0]
