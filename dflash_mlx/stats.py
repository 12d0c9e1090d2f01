"""What a generation did: the rounds, and every figure that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .logprobs import TokenLogprob


@dataclass(frozen=True)
class Round:
    """One round as it reached the caller.

    Attributes:
        tokens: the ids it added, in order; the first `accepted` of them were drafted.
        drafted: tokens the target verified besides the anchor; 0 in plain decoding.
        accepted: drafted tokens kept, the bonus not counted.
        copied: the draft was copied from the text so far (`lookup.py`).
        finish_reason: "stop" or "length" in the last round, else None.
        logprobs: of each token, if wanted.
    """

    tokens: tuple[int, ...]
    drafted: int
    accepted: int
    finish_reason: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    copied: bool = False


@dataclass
class Copied:
    """What of a generation was drafted by copying; its rounds, drafted and accepted tokens."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0

    def add(self, rounds: int, drafted: int, accepted: int) -> None:
        """Count some rounds."""
        self.rounds += rounds
        self.drafted += drafted
        self.accepted += accepted


@dataclass
class Stats:
    """Counts and times of one generation, in tokens and seconds.

    The first token comes out of the prefill and belongs to no round. A round cut short by the
    end of the text counts what it kept.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    round_tokens: int = 0
    histogram: dict[int, int] = field(default_factory=dict)
    widths: dict[int, int] = field(default_factory=dict)  # rounds by tokens verified
    copied: Copied = field(default_factory=Copied)  # counted in all of the above, too
    ttft_s: float = 0.0
    decode_s: float = 0.0

    def add(self, round_: Round, *, first: bool) -> None:
        """Count a round; `first` marks the token of the prefill."""
        self.generated_tokens += len(round_.tokens)
        if first:
            return
        self.rounds += 1
        self.round_tokens += len(round_.tokens)
        self.drafted += round_.drafted
        self.accepted += round_.accepted
        self.histogram[round_.accepted] = self.histogram.get(round_.accepted, 0) + 1
        width = round_.drafted + 1
        self.widths[width] = self.widths.get(width, 0) + 1
        if round_.copied:
            self.copied.add(1, round_.drafted, round_.accepted)

    @property
    def tokens_per_round(self) -> float:
        """tau: tokens a round added, the bonus included, averaged over rounds."""
        return self.round_tokens / self.rounds if self.rounds else 0.0

    @property
    def prefill_tok_s(self) -> float:
        """Prompt tokens not taken from the cache, per second until the first token."""
        return _rate(self.prompt_tokens - self.cached_tokens, self.ttft_s)

    @property
    def decode_tok_s(self) -> float:
        """Tokens after the first, per second."""
        return _rate(self.generated_tokens - 1, self.decode_s)

    @property
    def acceptance_histogram(self) -> list[int]:
        """How many rounds accepted 0, 1, 2, ... drafted tokens."""
        return [self.histogram.get(n, 0) for n in range(max(self.histogram, default=-1) + 1)]

    def as_dict(self) -> Mapping[str, object]:
        """Every figure by its name, for JSON."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "generated_tokens": self.generated_tokens,
            "rounds": self.rounds,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "tokens_per_round": round(self.tokens_per_round, 4),
            "acceptance_histogram": self.acceptance_histogram,
            "widths": {str(width): rounds for width, rounds in sorted(self.widths.items())},
            "lookup": asdict(self.copied),
            "ttft_s": round(self.ttft_s, 4),
            "prefill_tok_s": round(self.prefill_tok_s, 2),
            "decode_tok_s": round(self.decode_tok_s, 2),
        }


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 and count > 0 else 0.0
