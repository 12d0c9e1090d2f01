"""What has to be known before widths can be chosen, measured where it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .render import Screen

if TYPE_CHECKING:
    from dflash_mlx.loading import Pair
    from dflash_mlx.options import Options


def make_ready(pair: Pair, options: Options, screen: Screen) -> None:
    """With block "auto", measure rounds of this pair, once per machine."""
    if options.block != "auto" or pair.draft is None or options.guide is not None:
        return  # no width is chosen
    from dflash_mlx.tune.choose import costs_of, stored

    if pair.ranks.size > 1:  # they measure in their first answer, where all of them are
        if pair.costs is None and stored(pair) is None:
            screen.note("the first answer begins by measuring rounds, once")
        return
    with Measuring(screen) as bar:
        costs_of(pair, bar)


class Measuring:
    """Shows how far a measurement is."""

    def __init__(self, screen: Screen) -> None:
        columns = (TextColumn("[dim]measuring rounds, once"), BarColumn(), TimeElapsedColumn())
        shown = screen.err.is_terminal and not screen.quiet
        self._bar = Progress(*columns, console=screen.err, transient=True, disable=not shown)
        self._began = False

    def __call__(self, done: int, total: int) -> None:
        if not self._began:
            self._bar.start()
            self._bar.add_task("", total=total)
            self._began = True
        self._bar.update(self._bar.task_ids[0], completed=done)

    def __enter__(self) -> Measuring:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
