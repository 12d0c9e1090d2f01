"""What `dflash-mlx bench kernels` prints: a table per size, or JSON line by line."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .kernel_table import about, legend, problems, sweep_lines, table, verdict
from .render import Screen

if TYPE_CHECKING:
    from dflash_mlx.bench.kernels.race import Subject
    from dflash_mlx.bench.kernels.results import Result
    from dflash_mlx.bench.setting import Setting


class Report:
    """Takes results one by one and prints them as they come.

    Attributes:
        interrupted: whether the user has ended it early; part of the JSON summary.
    """

    def __init__(self, json: bool, screen: Screen) -> None:
        self.interrupted = False
        self._json = json
        self._screen = screen
        self._setting: Setting | None = None
        self._subject: Subject | None = None
        self._results: list[Result] = []
        self._section: list[Result] = []
        self._bar: Progress | None = None

    @property
    def bad(self) -> bool:
        """Whether a result was wrong, or nothing ran."""
        return any(r.wrong for r in self._results) or all(r.failed for r in self._results)

    def begin(self, setting: Setting) -> None:
        """Say where this is."""
        self._setting = setting
        if not self._json:
            for line in (*about(setting), *legend()):
                self._screen.out.print(line, highlight=False)

    @contextmanager
    def progress(self, total: int) -> Iterator[None]:
        """A bar with the time left, in a terminal."""
        console = self._screen.err
        columns = (TextColumn("[dim]{task.description}"), BarColumn(), MofNCompleteColumn())
        wanted = console.is_terminal and not self._screen.quiet
        with Progress(
            *columns,
            TimeRemainingColumn(),
            console=console,
            transient=True,
            refresh_per_second=2,  # drawing takes time from what is timed
            disable=not wanted,
        ) as bar:
            bar.add_task("", total=total)
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def open(self, subject: Subject) -> None:
        """A size is up next."""
        first = self._subject is None or self._subject.entry is not subject.entry
        self._subject, self._section = subject, []
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=subject.entry.name)
        if first and not self._json:
            self._print("", f"[bold]{subject.entry.name}[/] beside {subject.entry.beside}")

    def add(self, result: Result) -> None:
        """One width of it."""
        self._results.append(result)
        self._section.append(result)
        if self._json:
            self._dump(result.as_dict(self._setting.copy_gb_s if self._setting else None))
        if self._bar:
            self._bar.update(self._bar.task_ids[0], advance=1)

    def close(self) -> None:
        """Print the table of a size, as far as it came."""
        if self._section and self._setting and not self._json:
            width = self._screen.out.width
            self._print("", table(self._section, self._setting, width), *problems(self._section))

    def end(self) -> None:
        """Print what it comes to."""
        from dflash_mlx.bench.kernels.results import ladders

        if self._json:
            self._dump({"summary": self._summary()})
            return
        swept = sweep_lines(ladders(self._results))
        self._print("", *swept, verdict(self._results, self.interrupted))

    def _summary(self) -> dict[str, Any]:
        from dflash_mlx.bench.kernels.results import ladders

        return {
            **(self._setting.as_dict() if self._setting else {}),
            "cases": len(self._results),
            "failed": sum(r.failed for r in self._results),
            "wrong": sum(r.wrong for r in self._results),
            "slower_by_threads": ladders(self._results),
            "interrupted": self.interrupted,
        }

    def _print(self, *lines: Any) -> None:
        """Without the bar, which may be on the same terminal."""
        if self._bar:
            self._bar.stop()
        for line in lines:
            self._screen.out.print(line, highlight=False)
        if self._bar:
            self._bar.start()

    def _dump(self, record: dict[str, Any]) -> None:
        typer.echo(jsonlib.dumps(record, ensure_ascii=False, allow_nan=False))
