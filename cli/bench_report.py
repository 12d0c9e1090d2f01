"""What a benchmark shows while it runs and when it ends, and the files that it writes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .bench_table import table
from .render import Screen
from .several import wire_memory

if TYPE_CHECKING:
    from dflash_mlx.bench.data.problems import Problems
    from dflash_mlx.bench.endpoint import Load
    from dflash_mlx.bench.recording import Recording
    from dflash_mlx.bench.records import Answer, Arm
    from dflash_mlx.bench.run import Plan
    from dflash_mlx.loading import Pair

    from .bench_options import ReportOptions

SPLIT_PROMPTS = 2
SPLIT_TOKENS = 48
DRAWING_SHARE = 50  # times as long as the last drawing until the next


class Report:
    """Takes answers as they come, keeps the file up to date and draws the table.

    Args:
        recording: what is about to be run, without answers.
        out: where results go; with `resume`, the answers of that file are taken over.
    """

    def __init__(self, recording: Recording, out: ReportOptions) -> None:
        self.recording = recording
        self.quiet = out.quiet
        self._out = out
        self._screen = Screen(quiet=out.quiet)
        columns = (TextColumn("[dim]{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), console=self._screen.err)
        self._task = self._bar.add_task("")
        self._live: Live | None = None
        self._next_drawing = 0.0
        self._resume()

    @contextmanager
    def running(self, total: int) -> Iterator[None]:
        """Show progress, and whatever happens print and write what there is.

        Args:
            total: prompts, those already answered included.
        """
        self._bar.update(self._task, total=total, completed=len(self.recording.done))
        self._describe_machine()
        interrupted = False
        try:
            with self._drawing():
                yield
            self.recording.whole = True
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if interrupted or self.recording.answers:
                self._end()
        if interrupted:
            raise typer.Exit(130)
        if any(figures.differs for figures in self.recording.figures):
            raise typer.Exit(1)

    def loaded(self, name: str, pair: Pair, arms: Sequence[Arm]) -> None:
        """A pair is there."""
        wire_memory()
        entry = {
            "name": name,
            "model": pair.name,
            "draft": pair.draft_name,
            "dtype": str(pair.target.dtype).removeprefix("mlx.core."),
            "arms": [asdict(arm) | {"name": arm.name} for arm in arms],
        }
        if entry not in self.recording.pairs:
            self.recording.pairs.append(entry)

    def loaded_server(self, dataset: str, load: Load) -> None:
        """What a server did on a set in all."""
        entry = {"dataset": dataset, **asdict(load), "tok_s": load.tok_s}
        self.recording.throughput.append(entry)

    def add(self, answers: Sequence[Answer]) -> None:
        """The answers of all arms to one prompt."""
        self.recording.answers += answers
        self._write()
        self._bar.update(self._task, advance=1)
        self._draw()

    def split(
        self, pair: Pair, name: str, arms: Sequence[Arm], problems: Problems, plan: Plan
    ) -> None:
        """Find out where the time of a round goes, in a short pass of its own."""
        from dataclasses import replace

        from dflash_mlx.bench.split import split
        from dflash_mlx.bench.talk import Talks

        there = {(e["pair"], e["dataset"], e["arm"]) for e in self.recording.splits}
        for arm in arms:
            where = {"pair": name, "dataset": problems.dataset, "arm": arm.name}
            # Rounds of another width each have no parts to be averaged.
            if not isinstance(arm.block, int) or tuple(where.values()) in there:
                continue
            self.say(f"{name}: {problems.dataset}, parts of a round")
            options = replace(
                plan.options(), max_tokens=min(SPLIT_TOKENS, plan.max_tokens), block=arm.block
            )
            talk = Talks(pair, plan.think).open(arm, options)
            prompts = [talk.prompt(p.turns[0]) for p in problems.items[:SPLIT_PROMPTS]]
            self.recording.splits.append(where | split(pair, prompts, options).as_dict())
            self._write()

    def _resume(self) -> None:
        path = self._out.resume
        if path is None:
            return
        from dflash_mlx.bench.recording import read_recording

        before = read_recording(path)
        before.check_resumes(self.recording)
        self.recording = before

    def _describe_machine(self) -> None:
        from dflash_mlx.bench.power import power
        from dflash_mlx.bench.recording import check_machine
        from dflash_mlx.bench.setting import this_setting

        machine = this_setting(small=False).as_dict()
        if self.recording.machine:
            check_machine(self.recording.machine, machine)
        else:
            self.recording.machine = machine
        state = power()
        self.recording.machine["power_begin"] = asdict(state) if state else None

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        console = self._screen.err
        if not console.is_terminal or self.quiet:
            yield
            return
        # Drawn when something has happened, not by a clock: that would disturb what is timed.
        with Live(self._picture(), console=console, auto_refresh=False, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def _picture(self) -> Group:
        return Group(table(self.recording.figures, self._screen.err.width), self._bar)

    def _draw(self) -> None:
        began = time.perf_counter()
        if self._live and began >= self._next_drawing:
            self._live.update(self._picture(), refresh=True)
            # Intervals over many answers take their time; most of it belongs to the measurement.
            self._next_drawing = began + DRAWING_SHARE * (time.perf_counter() - began)

    def say(self, text: str) -> None:
        """What is under way."""
        self._bar.update(self._task, description=text)
        self._next_drawing = 0.0
        self._draw()

    def _write(self, figures: bool = False) -> None:
        if self._out.record:
            self.recording.write(self._out.record, figures)

    def _end(self) -> None:
        from dflash_mlx.bench.power import power

        state = power()
        self.recording.machine["power_end"] = asdict(state) if state else None
        for line in self._lines():
            self._screen.out.print(line, highlight=False)
        self._write(figures=True)
        self._write_reports()

    def _write_reports(self) -> None:
        from dflash_mlx.bench.page import html, markdown
        from dflash_mlx.paths import write_whole

        for path, made in ((self._out.html, html), (self._out.markdown, markdown)):
            if path is not None:
                write_whole(path, made(self.recording))

    def _lines(self) -> Iterator[Any]:
        figures = self.recording.figures
        if not figures:
            yield "stopped before anything was measured"
            return
        from dflash_mlx.bench.wording import LEGEND, load_line, notes, split_line

        yield table(figures, self._screen.out.width)
        yield ""
        yield Text(LEGEND, style="dim")
        yield from map(Text, notes(figures))
        for load in self.recording.throughput:
            yield Text(load_line(load))
        yield from map(Text, map(split_line, self.recording.splits))
        if not self.recording.whole:
            yield "stopped early; what is shown was measured"
