"""The figures of a benchmark as a table on a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from dflash_mlx.bench.figures import Figures

ROOM = 110


def table(rows: Sequence[Figures], width: int) -> Table:
    """One row for every arm of every set, below the name of its pair."""
    from dflash_mlx.bench.wording import HEADS, NARROW, cells

    heads = HEADS if width >= ROOM else NARROW
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in heads:
        justify: Any = "left" if head in ("set", "arm") else "right"
        made.add_column(head, justify=justify, no_wrap=True, header_style="dim")
    last = ""
    for figures in rows:
        found = cells(figures)
        if figures.pair != last:
            last = figures.pair
            made.add_row(Text(last, style="bold"), *[""] * (len(heads) - 1))
        made.add_row(*(_styled(head, found[head], figures) for head in heads))
    return made


def _styled(head: str, text: str, figures: Figures) -> Text:
    from dflash_mlx.bench.wording import SPEEDUP

    if head != SPEEDUP or not text:
        return Text(text)
    if figures.differs:
        return Text(text, style="bold red")
    faster = figures.speedup is not None and figures.speedup.value > 1
    return Text(text, style="green" if faster else "yellow")
