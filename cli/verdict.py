"""What a verification found, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from .once import versions
from .render import count

if TYPE_CHECKING:
    from dflash_mlx.exactness import Fit, Sampled
    from dflash_mlx.loading import Pair
    from dflash_mlx.options import Options
    from dflash_mlx.verification import Choice, Comparison, Divergence

SHOWN = 40  # characters of a prompt


@dataclass(frozen=True)
class Found:
    """Every comparison: one greedy text per prompt, in order, and the sampled ones."""

    prompts: tuple[str, ...]
    greedy: tuple[Comparison, ...]
    sampled: tuple[Sampled, ...]

    @cached_property
    def fit(self) -> Fit:
        """The test over all sampled texts."""
        from dflash_mlx.exactness import fit

        return fit([place for text in self.sampled for place in text.places])

    @property
    def reproduced(self) -> int:
        """How many sampled texts came again with their seed."""
        return sum(text.same for text in self.sampled)

    @property
    def verdict(self) -> Literal["identical", "tie", "bug"]:
        """The worst of all."""
        verdicts = {comparison.verdict for comparison in self.greedy}
        wrong = self.reproduced < len(self.sampled) or not self.fit.exact
        if wrong or "bug" in verdicts:
            return "bug"
        return "tie" if "tie" in verdicts else "identical"


def lines(pair: Pair, found: Found, options: Options) -> Iterator[str]:
    """The report, line by line."""
    assert pair.draft is not None
    form = f"{_name(pair.target.dtype)}, block {_block(pair, options)}"
    yield f"{pair.name} with {pair.draft_name}: {form}, up to {options.max_tokens} tokens a text"
    yield ""
    yield "greedy, against plain decoding"
    for number, (prompt, comparison) in enumerate(zip(found.prompts, found.greedy, strict=True), 1):
        yield from _greedy(number, prompt, comparison, _block(pair, options))
    if found.sampled:
        yield ""
        yield f"sampled at temperature {options.sampling.temperature:g}, against the target alone"
        yield from _sampled(found)
    yield ""
    yield _summary(found)


def _greedy(number: int, prompt: str, comparison: Comparison, block: int) -> Iterator[str]:
    parts = [count(comparison.tokens, "token"), f"{comparison.tokens_per_round:.2f} a round"]
    if comparison.ties:
        parts.append(f"{comparison.ties} tied")
    yield f"{number:3} {comparison.verdict:10} {', '.join(parts):32} {_quoted(prompt, SHOWN)}"
    for divergence in comparison.divergences:
        yield from ("    " + line for line in _divergence(divergence, comparison, block))


def _divergence(divergence: Divergence, comparison: Comparison, block: int) -> Iterator[str]:
    best, second = divergence.top
    yield (
        f"{divergence.verdict} at token {divergence.position + 1}, behind "
        f"{_quoted('...' + divergence.behind)}: plain {_choice(divergence.plain)}, speculative "
        f"{_choice(divergence.speculative)}"
    )
    yield (
        f"best two {_quoted(best.text)} {best.logit:.4f}, {_quoted(second.text)} "
        f"{second.logit:.4f}: {divergence.margin:.4g} apart"
    )
    behind = "" if divergence.gap is None else f"the token is {divergence.gap:.4g} behind; "
    yield (
        f"{behind}tied up to {comparison.tolerance:.4g}, as passes of 1 and {block} rows differ "
        f"by up to {comparison.noise:.2g}"
    )


def _sampled(found: Found) -> Iterator[str]:
    texts, fit = len(found.sampled), found.fit
    yield f"    seeds: {found.reproduced} of {count(texts, 'text')} came again with the same seed"
    if fit.statistic is None:
        yield f"    distribution: not tested, {count(fit.places, 'token')} are too few; --samples"
        return
    from dflash_mlx.exactness import FALSE_ALARMS

    yield (
        f"    distribution: chi-square {fit.statistic:.1f} over {count(fit.places, 'token')} in "
        f"{fit.bins} bins, p {fit.p_value:.2g}; a bug below {FALSE_ALARMS:g}"
    )


def _summary(found: Found) -> str:
    verdicts = [comparison.verdict for comparison in found.greedy]
    wrong = [f"{verdicts.count('bug')} of {len(verdicts)} greedy texts"] * ("bug" in verdicts)
    if found.reproduced < len(found.sampled):
        wrong.append("seeds do not reproduce")
    if not found.fit.exact:
        wrong.append("sampled texts do not follow the target's distribution")
    if wrong:
        return f"BUG: {'; '.join(wrong)}"
    same, ties = verdicts.count("identical"), verdicts.count("tie")
    counted = f"{same} of {len(verdicts)} greedy texts identical"
    return f"no bug: {counted}" + (f", {ties} with ties" if ties else "")


def record(pair: Pair, found: Found, options: Options) -> dict[str, object]:
    """Everything as `--json` prints it."""
    import mlx.core as mx

    assert pair.draft is not None
    greedy = zip(found.prompts, found.greedy, strict=True)
    return {
        "verdict": found.verdict,
        "greedy": [{"prompt": prompt, **asdict(comparison)} for prompt, comparison in greedy],
        "sampled": _sampled_record(found, options) if found.sampled else None,
        "model": pair.name,
        "draft": pair.draft_name,
        "dtype": _name(pair.target.dtype),
        "draft_dtype": _name(pair.draft.dtype),
        "device": mx.default_device().type.name,
        "block": _block(pair, options),
        "max_tokens": options.max_tokens,
        "seed": options.seed,
        "versions": versions(),
    }


def _sampled_record(found: Found, options: Options) -> dict[str, object]:
    from dflash_mlx.exactness import FALSE_ALARMS

    return {
        "temperature": options.sampling.temperature,
        "texts": len(found.sampled),
        "reproduced": found.reproduced,
        **asdict(found.fit),
        "false_alarms": FALSE_ALARMS,
        "exact": found.fit.exact,
    }


def _block(pair: Pair, options: Options) -> int:
    assert pair.draft is not None
    return options.width(pair.draft.config.block_size)


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _choice(choice: Choice | None) -> str:
    return "the end" if choice is None else _quoted(choice.text)


def _quoted(text: str, most: int | None = None) -> str:
    shown = text if most is None or len(text) <= most else text[: most - 3] + "..."
    return json.dumps(shown, ensure_ascii=False)
