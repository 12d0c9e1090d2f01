"""What to generate and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from .errors import UsageError
from .guide import Guide
from .logprobs import MOST
from .sampling import Sampling
from .thinking import Thinking

AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True)
class Options:
    """What to generate and how.

    Attributes:
        max_tokens: at most this many tokens; the model's context may end the text sooner.
        sampling: how tokens are chosen.
        block: tokens verified per round, the anchor included; None is the draft's own block,
            "auto" the width that promises most in each round.
        lookup: drafts copied from the text so far. "auto" takes them with block "auto", where they
            promise more tokens per second than the draft; "on" also with other blocks and without
            a draft, where they promise more tokens per round; "off" never.
        speculate: False decodes plainly with the same code.
        stop: texts that end the answer; not part of it.
        seed: 32-bit seed that reproduces a sampled run; None draws one.
        prefill_chunk: prompt tokens per pass.
        compiled: compile the passes of a round (`mx.compile`); None where that pays.
        logprobs: report each token's log-probability and this many of the most probable tokens at
            its place, 0 to 20; None reports nothing. `logprobs` tells of which distribution.
        guide: what the text has to be. With it, block "auto" is the draft's own block,
            and nothing is copied.
        thinking: the guide begins behind what the model thinks; None holds it to the guide from
            its first token on.
    """

    max_tokens: int = 512
    sampling: Sampling = field(default_factory=Sampling)
    block: int | Literal["auto"] | None = None
    lookup: Literal["auto", "on", "off"] = "auto"
    speculate: bool = True
    stop: tuple[str, ...] = ()
    seed: int | None = None
    prefill_chunk: int = 512
    compiled: bool | None = None
    logprobs: int | None = None
    guide: Guide | None = None
    thinking: Thinking | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise UsageError(f"max_tokens is {self.max_tokens}, expected 0 or more")
        if self.block not in (None, AUTO) and not _in_range(self.block):
            raise UsageError(f"block is {self.block}, expected 2 to 64, or auto")
        if self.lookup not in (AUTO, "on", "off"):
            raise UsageError(f"lookup is {self.lookup!r}, expected auto, on or off")
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise UsageError(f"seed is {self.seed}, expected 0 to {2**32 - 1}")
        if self.prefill_chunk < 1:
            raise UsageError(f"prefill_chunk is {self.prefill_chunk}, expected 1 or more")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST:
            raise UsageError(f"logprobs is {self.logprobs}, expected 0 to {MOST}")
        if self.thinking is not None and self.guide is None:
            raise UsageError("thinking is given without the guide that begins behind it")
        if "" in self.stop:
            raise UsageError("a stop text is empty; every answer would end at once")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """What `as_dict` made, also after it was JSON.

        Raises:
            UsageError: the guide cannot be used here.
        """
        changed = {
            "sampling": Sampling.from_dict(fields["sampling"]),
            "guide": fields["guide"] and Guide(**fields["guide"]),
            "thinking": fields["thinking"] and Thinking.from_dict(fields["thinking"]),
        }
        return cls(**{**fields, **changed, "stop": tuple(fields["stop"])})

    def looks_up(self, drafts: bool) -> bool:
        """Whether drafts may be copied from the text, beside those of a draft or without one."""
        return self.lookup == "on" or (self.lookup == AUTO and self.block == AUTO and drafts)

    def width(self, own: int) -> int:
        """Most tokens verified per round, where the draft's own block has `own`."""
        return own if self.block is None or self.block == AUTO else self.block


def _in_range(block: object) -> bool:
    return isinstance(block, int) and 2 <= block <= 64
