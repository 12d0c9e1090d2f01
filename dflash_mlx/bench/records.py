"""What a run writes down: per prompt and way of decoding, the tokens, the rounds and the times.

Nothing here is a figure; those follow from it in `figures.py`, and can be computed again from the
file. Names in JSON are the names of the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from .repetition import repetition

Kind = Literal["plain", "dflash", "mlx-lm", "endpoint"]
Verdict = Literal["identical", "tie", "bug"]
Block = int | Literal["auto"]


@dataclass(frozen=True)
class Arm:
    """One way to decode.

    Attributes:
        kind: plain is our loop without a draft, mlx-lm its own `stream_generate`.
        block: tokens verified per round, "auto" for what promises most in each; None where nothing
            is drafted.
    """

    kind: Kind
    block: Block | None = None

    @property
    def name(self) -> str:
        """As it is printed: `plain`, `dflash 8`."""
        return self.kind if self.block is None else f"{self.kind} {self.block}"


class Drafting(NamedTuple):
    """One round: tokens drafted, accepted of them, and kept with the bonus.

    Where the text ended inside of the round, `kept` is less than accepted + 1.
    """

    drafted: int
    accepted: int
    kept: int

    @property
    def whole(self) -> bool:
        """Whether the round shows where acceptance ended, or the text has ended before."""
        return self.kept == self.accepted + 1


@dataclass(frozen=True)
class Turn:
    """One answer to one message.

    Attributes:
        cached_tokens: of the prompt, those that were there from the turn before.
        ids: generated tokens, the stop token included; empty where an endpoint does not tell them.
        tokens: how many were generated.
        rounds: empty where nothing was drafted; the first token belongs to none.
        ttft_s: seconds to the first token.
        decode_s: seconds from the first token to the last.
        peak_bytes: most memory that MLX held meanwhile, all weights in the process included;
            0 where that is not known.
        text: without the thinking.
        finish_reason: "stop" or "length".
    """

    prompt_tokens: int
    cached_tokens: int
    ids: tuple[int, ...]
    tokens: int
    rounds: tuple[Drafting, ...]
    ttft_s: float
    decode_s: float
    peak_bytes: int
    text: str
    thinking: str
    finish_reason: str | None

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Turn:
        """From its JSON."""
        rounds = tuple(Drafting(*r) for r in value["rounds"])
        return cls(**{**value, "ids": tuple(value["ids"]), "rounds": rounds})


class Key(NamedTuple):
    """What was asked: every arm answers it once."""

    pair: str
    dataset: str
    problem: str
    repeat: int


@dataclass(frozen=True)
class Answer:
    """One conversation in one way of decoding.

    Attributes:
        verdict: what comparing it with the baseline found; None for the baseline itself and where
            texts were sampled.
        difference: where it differs first, in words.
        correct: None where the set has no answers, or its code was not run.
        failed: why an endpoint did not answer; there are no turns then.
    """

    pair: str
    dataset: str
    problem: str
    repeat: int
    arm: str
    turns: tuple[Turn, ...]
    verdict: Verdict | None = None
    difference: str | None = None
    correct: bool | None = None
    failed: str | None = None

    @property
    def key(self) -> Key:
        """What was asked."""
        return Key(self.pair, self.dataset, self.problem, self.repeat)

    @property
    def rounds(self) -> list[Drafting]:
        """Of all turns."""
        return [round_ for turn in self.turns for round_ in turn.rounds]

    @property
    def decode_tok_s(self) -> float | None:
        """Tokens behind the first ones, per second; None where there are none."""
        tokens = sum(turn.tokens - 1 for turn in self.turns if turn.tokens)
        seconds = sum(turn.decode_s for turn in self.turns)
        return tokens / seconds if tokens and seconds > 0 else None

    @property
    def prefill_tok_s(self) -> float | None:
        """Prompt tokens that were computed, per second until the first token."""
        tokens = sum(turn.prompt_tokens - turn.cached_tokens for turn in self.turns)
        seconds = sum(turn.ttft_s for turn in self.turns)
        return tokens / seconds if tokens and seconds > 0 else None

    @property
    def cut(self) -> bool:
        """Whether the token limit ended a turn."""
        return any(turn.finish_reason == "length" for turn in self.turns)

    @cached_property
    def loops(self) -> bool:
        """Whether a turn repeats itself."""
        return any(repetition(turn.ids).degenerate for turn in self.turns)

    def as_dict(self) -> dict[str, Any]:
        """In the form of JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Answer:
        """From its JSON."""
        return cls(**{**value, "turns": tuple(Turn.from_dict(turn) for turn in value["turns"])})
