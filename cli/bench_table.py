"""The figures of a benchmark as a table and as lines, for screens and for markdown alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from .render import count

if TYPE_CHECKING:
    from dflash_mlx.bench.figures import Figures
    from dflash_mlx.bench.statistics import Interval

NARROW = ("set", "arm", "tok/s", "speed-up (95 %)", "tok/round", "same", "right")
WIDE = ("first token", "prefill tok/s", "accepted", "prompts", "GB")
ROOM = 110


def table(rows: Sequence[Figures], width: int) -> Table:
    """One row for every arm of every set; the pair is the title of its own rows."""
    heads = (*NARROW, *WIDE) if width >= ROOM else NARROW
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in heads:
        justify: Any = "left" if head in ("set", "arm") else "right"
        made.add_column(head, justify=justify, no_wrap=True, header_style="dim")
    last = ""
    for figures in rows:
        found = cells(figures)
        if figures.pair != last:
            last = figures.pair
            made.add_row(Text(figures.pair, style="bold"), *[""] * (len(heads) - 1))
        made.add_row(*(_styled(head, found[head], figures) for head in heads))
    return made


def cells(figures: Figures) -> dict[str, str]:
    """Every cell of a row by its head."""
    drafts = figures.drafts
    return {
        "set": figures.dataset,
        "arm": figures.arm + ("*" if figures.degenerate else ""),
        "tok/s": number(figures.decode_tok_s, 1),
        "speed-up (95 %)": speedup(figures),
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
    """What a reader of the table has to know."""
    yield (
        "speed-up: median over prompts of the ratio of decode speeds, with its bootstrap interval. "
        "tok/round: tokens per round, averaged over prompts. same: texts equal to the first arm's."
    )
    for figures in rows:
        where = f"{figures.dataset}, {figures.arm}"
        yield from (f"{where}: {line}" for line in _about(figures))


def _about(figures: Figures) -> Iterator[str]:
    if figures.differs and figures.same:
        yield f"no speed-up, {count(figures.same.bug, 'text')} differ beyond ties: " + (
            figures.same.example or ""
        )
    elif figures.same and figures.same.example:
        yield f"tied where it differs: {figures.same.example}"
    if figures.degenerate:
        calm = figures.without_loops
        rest = f"; the prompts without: {ranged(calm)}" if calm else ""
        looping = count(figures.degenerate, "answer")
        yield f"* {looping} of {figures.answers} repeat themselves{rest}"
    if figures.accuracy and figures.accuracy.low is not None:
        low, high = 100 * figures.accuracy.low, 100 * (figures.accuracy.high or 0)
        cut = f", {count(figures.cut, 'answer')} cut at the token limit" if figures.cut else ""
        yield f"{100 * figures.accuracy.value:.0f} % right ({low:.0f} - {high:.0f} %){cut}"
    if figures.paired:
        lone = figures.paired.only_first, figures.paired.only_second
        if any(lone):
            yield (
                f"the baseline alone is right {lone[0]} times, this arm alone {lone[1]} times "
                f"(McNemar p {figures.paired.p_value:.2g})"
            )
    if figures.failed:
        yield f"{count(figures.failed, 'prompt')} not answered"


def split_line(entry: Mapping[str, Any]) -> str:
    """Where the time of a round goes."""
    parts = [f"{name} {1e3 * entry[name]:.1f}" for name in PARTS]
    return (
        f"{entry['dataset']}, {entry['arm']}: ms per round, each part waited for by itself in a "
        f"pass of its own: {', '.join(parts)}"
    )


PARTS = ("draft", "verify", "accept", "commit", "host")


def _styled(head: str, text: str, figures: Figures) -> Text:
    if head == "speed-up (95 %)" and text:
        if figures.differs:
            return Text(text, style="bold red")
        faster = figures.speedup is not None and figures.speedup.value > 1
        return Text(text, style="green" if faster else "yellow")
    return Text(text)
