"""Whether an answer fits into memory, told before it is begun.

A text that outgrows memory does not fail: the machine swaps, and a token takes seconds. So what
weights, caches and the passes of the prefill take at the end of the answer is summed up first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .errors import UsageError
from .footprint import CHUNK, DraftShape, Estimate, Kept, TargetShape
from .span import Span

GIB = 2**30
SCORES, NARROWEST = GIB, 16  # scores of a pass take so much, but it has so many rows at least
SHORTER = 2048  # a draft window that is worth naming


@dataclass(frozen=True)
class Memory:
    """What a loaded pair takes, and what there is.

    Attributes:
        usable: bytes that may be used.
        target, draft: bytes of the weights.
        shape, context: what is kept per token; None without a draft.
        heads: of the target's queries.
        itemsize, draft_itemsize: bytes of an element of keys and values.
        fused: whether attention computes without holding its scores.
        kv: how the target's keys and values are kept; None in full.
        draft_kv: how the draft's are.
        span: what the draft's full layers keep.
        quantises: whether the target's keys and values could be kept in fewer bits.
    """

    usable: int
    target: int
    draft: int
    shape: TargetShape
    context: DraftShape | None
    heads: int
    itemsize: int
    draft_itemsize: int
    fused: bool
    kv: Kept | None = None
    draft_kv: Kept | None = None
    span: Span | None = None
    quantises: bool = True

    def need(self, tokens: int, prompt: int) -> Estimate:
        """At the end of a text of `tokens`, of which `prompt` were read in chunks."""
        block = self.context.block or 1 if self.context else 1
        kept: float = self.draft_itemsize
        if self.draft_kv is not None:
            kept = self.draft_kv.bytes(self.draft_itemsize)
        context = self.context and self.context.context(tokens, kept, self.span)
        return Estimate(
            self.target,
            self.draft,
            self.shape.cache(tokens, block, self.itemsize, self.kv),
            context or 0,
            self._scores(prompt),
        )

    def fits(self, tokens: int, prompt: int) -> bool:
        """Whether that may be used."""
        return self.need(tokens, prompt).total <= self.usable

    def chunk(self, wanted: int, prompt: int) -> int:
        """Tokens of a prefill pass: `wanted`, or fewer where attention would hold too much."""
        if self.fused:
            return wanted
        return min(wanted, max(NARROWEST, SCORES // self._row(prompt)))

    def check(self, prompt: int, answer: int) -> None:
        """Refuse what does not fit.

        Args:
            prompt: tokens of the prompt.
            answer: most tokens that are to follow.

        Raises:
            UsageError: with the numbers, and what would fit.
        """
        if self.fits(prompt + answer, prompt):
            return
        need = self.need(prompt + answer, prompt)
        ways = list(self._ways(prompt, answer)) or ["a smaller model or --bits 4"]
        raise UsageError(
            f"a prompt of {prompt} tokens and an answer of {answer} need {_size(need.total)} "
            f"(weights {_size(need.target + (need.draft or 0))}, the target's cache "
            f"{_size(need.cache)}, the draft's context {_size(need.context or 0)}, passes "
            f"{_size(need.peak + need.allowance)}), {_size(self.usable)} may be used; "
            f"what fits: {', or '.join(ways)}"
        )

    def _ways(self, prompt: int, answer: int) -> Iterator[str]:
        """What would make it fit, one at a time, then together."""
        others: list[tuple[str, Memory]] = []
        if self.quantises and (self.kv is None or self.kv.bits > 8):
            others.append(("--kv-bits 8", replace(self, kv=Kept(8, 64), fused=False)))
        if self.quantises and (self.kv is None or self.kv.bits > 4):
            others.append(("--kv-bits 4", replace(self, kv=Kept(4, 64), fused=False)))
        if self.context and self.context.grows and self.span is None:
            window = f"--draft-window {SHORTER}"
            spanned = [(window, replace(self, span=Span(SHORTER, 4)))]
            spanned += [(f"{w} {window}", replace(m, span=Span(SHORTER, 4))) for w, m in others]
            others = spanned + others
        for way, memory in others:
            if memory.fits(prompt + answer, prompt):
                yield way
        shorter = self._most(prompt, answer)
        if shorter:
            yield f"a prompt of {shorter} tokens"

    def _most(self, prompt: int, answer: int) -> int:
        """The longest prompt that fits; 0 for none."""
        low, high = 0, prompt
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.fits(middle + answer, middle)
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _scores(self, prompt: int) -> int:
        """Of the last chunk of the prompt, where attention holds them."""
        return 0 if self.fused else min(prompt, self.chunk(CHUNK, prompt)) * self._row(prompt)

    def _row(self, prompt: int) -> int:
        """Scores of one query, twice and in float32."""
        return 2 * 4 * self.heads * prompt


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
