"""The figures of a benchmark in words, the same on a screen, in markdown and on a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .figures import Figures
from .statistics import Interval

SPEEDUP = "speed-up (95 %)"
NARROW = ("set", "arm", "tok/s", SPEEDUP, "tok/round", "same", "right")
WIDE = ("first token", "prefill tok/s", "accepted", "prompts", "GB")
HEADS = (*NARROW, *WIDE)
PARTS = ("draft", "verify", "accept", "commit", "host")
LEGEND = (
    f"{SPEEDUP}: median over prompts of the ratio of decode speeds to the first arm's, with its "
    "bootstrap interval. tok/round: tokens per round, averaged over prompts. same: texts equal to "
    "the first arm's. right: correct answers. *: some answers repeat themselves."
)


def cells(figures: Figures) -> dict[str, str]:
    """Every cell of a row by its head."""
    drafts = figures.drafts
    return {
        "set": figures.dataset,
        "arm": figures.arm + ("*" if figures.degenerate else ""),
        "tok/s": number(figures.decode_tok_s, 1),
        SPEEDUP: speedup(figures),
        "tok/round": f"{drafts.tau_mean:.2f}" if drafts else "",
        "same": same(figures),
        "right": right(figures),
        "first token": number(figures.ttft_s, 2, " s"),
        "prefill tok/s": number(figures.prefill_tok_s, 0),
        "accepted": f"{100 * drafts.accepted_share:.0f} %" if drafts else "",
        "prompts": str(figures.prompts),
        "GB": f"{figures.peak_bytes / 1e9:.2f}" if figures.peak_bytes else "",
    }


def speedup(figures: Figures) -> str:
    """The speed-up, or that there is none to be told."""
    if figures.differs:
        return "differs"
    if figures.speedup is None:
        return ""
    return ranged(figures.speedup)


def ranged(interval: Interval) -> str:
    """`1.23 (1.10 - 1.35)`."""
    if interval.low is None or interval.high is None:
        return f"{interval.value:.2f}"
    return f"{interval.value:.2f} ({interval.low:.2f} - {interval.high:.2f})"


def number(interval: Interval | None, digits: int, unit: str = "") -> str:
    """The figure without its interval."""
    return "" if interval is None else f"{interval.value:.{digits}f}{unit}"


def same(figures: Figures) -> str:
    """How many texts are the baseline's."""
    if figures.same is None:
        return ""
    ties = f" +{figures.same.tie} tied" if figures.same.tie else ""
    return f"{figures.same.identical}/{figures.same.compared}{ties}"


def right(figures: Figures) -> str:
    """How many answers are right."""
    if figures.accuracy is None:
        return ""
    return f"{round(figures.accuracy.value * figures.accuracy.n)}/{figures.accuracy.n}"


def notes(rows: Sequence[Figures]) -> Iterator[str]:
    """What a reader of the table has to know besides."""
    for figures in rows:
        where = f"{figures.dataset}, {figures.arm}"
        yield from (f"{where}: {line}" for line in _about(figures))


def _about(figures: Figures) -> Iterator[str]:
    if figures.differs and figures.same:
        example = figures.same.example or ""
        yield f"no speed-up, {_count(figures.same.bug, 'text')} differ beyond ties: {example}"
    elif figures.same and figures.same.example:
        yield f"tied where it differs: {figures.same.example}"
    if figures.degenerate:
        calm = figures.without_loops
        rest = f"; speed-up without those prompts: {ranged(calm)}" if calm else ""
        looping = _count(figures.degenerate, "answer")
        yield f"{looping} of {figures.answers} repeat themselves{rest}"
    if figures.cut and not figures.speedups:
        yield f"{figures.cut} of {_count(figures.answers, 'answer')} cut at the token limit"
    yield from _accuracy(figures)
    if figures.failed:
        yield f"{_count(figures.failed, 'prompt')} not answered"


def _accuracy(figures: Figures) -> Iterator[str]:
    found, paired = figures.accuracy, figures.paired
    if found is None or found.low is None or found.high is None:
        return
    if paired is None:
        yield f"{100 * found.value:.0f} % right ({100 * found.low:.0f} - {100 * found.high:.0f} %)"
    elif paired.only_first or paired.only_second:
        yield (
            f"right where the first arm is wrong {_count(paired.only_second, 'time')}, wrong where "
            f"it is right {_count(paired.only_first, 'time')} (McNemar p {paired.p_value:.2g})"
        )


def split_line(entry: Mapping[str, Any]) -> str:
    """Where the time of a round goes."""
    parts = [f"{name} {1e3 * entry[name]:.1f}" for name in PARTS]
    return (
        f"{entry['dataset']}, {entry['arm']}: ms per round, each part waited for by itself in a "
        f"pass of its own: {', '.join(parts)}"
    )


def load_line(entry: Mapping[str, Any]) -> str:
    """What a server did in all."""
    return (
        f"{entry['dataset']}: {entry['tok_s']:.1f} tokens/s in all at {entry['concurrency']} "
        f"requests at once ({entry['tokens']} tokens in {entry['seconds']:.1f} s)"
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
