"""What `dflash-mlx train` shows while it runs, and at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from dflash_mlx.train.evaluate import Evaluation
    from dflash_mlx.train.fit import StepReport
    from dflash_mlx.train.generate import Tally

RECENT = 20  # steps that the figures shown are averaged over


class View:
    """Progress on stderr, results on stdout."""

    def __init__(self, quiet: bool) -> None:
        self.err = Console(stderr=True, highlight=False, quiet=quiet)
        self.out = Console(highlight=False)

    def say(self, text: str) -> None:
        """A line of progress."""
        self.err.print(text)

    @contextmanager
    def bar(self, name: str, total: int | None) -> Iterator[Callable[..., None]]:
        """A bar; what is yielded takes how much is done, of how much, and a remark."""
        with self._progress() as bar:
            task = bar.add_task(name, total=total, note="")

            def advance(done: int, total: int | None = total, note: str = "") -> None:
                bar.update(task, completed=done, total=total, note=note)

            yield advance

    @contextmanager
    def fitting(self, leads: bool) -> Iterator[Callable[[StepReport | Evaluation], None]]:
        """A bar for the steps of a fit, and a line for every evaluation."""
        from dflash_mlx.train.fit import StepReport

        recent: deque[StepReport] = deque(maxlen=RECENT)
        with self._progress(shown=leads) as bar:
            task = bar.add_task("training", total=None, note="")

            def watch(report: StepReport | Evaluation) -> None:
                if not isinstance(report, StepReport):
                    bar.console.print(f"step {report.step}: {line(report)}")
                    return
                recent.append(report)
                bar.update(
                    task, completed=report.step + 1, total=report.steps, note=figures(recent)
                )

            yield watch

    def tally(self, tally: Tally) -> str:
        """A remark on answers."""
        ends = ", ".join(f"{count} {reason}" for reason, count in tally.reasons.most_common())
        return f"{tally.tokens} tokens; {ends}"

    def table(self, found: Evaluation) -> None:
        """Tokens per round by kind."""
        figures = found.as_dict()
        table = Table("", "draft", "n-gram table", "prompt lookup", box=None)
        rows = {**figures["by_kind"], "all": figures["tokens_per_round"]}
        for kind, ways in rows.items():
            cells = (f"{ways[way]:.2f}" for way in ("draft", "ngrams", "lookup"))
            table.add_row(kind or "prompts", *cells)
        self.out.print(table)

    def end(self, found: Mapping[str, Any]) -> None:
        """Where the draft is and how good."""
        reached = found["tokens_per_round"]
        told = f", {reached:.2f} tokens per round on held-out prompts" if reached else ""
        self.out.print(f"{found['draft']}: {found['steps']} steps{told}")

    def _progress(self, shown: bool = True) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        return Progress(*columns, console=self.err, disable=not shown)


def line(found: Evaluation) -> str:
    """An evaluation in a line."""
    ways = found.as_dict()["tokens_per_round"]
    return (
        f"{ways['draft']:.2f} tokens per round held out "
        f"(n-gram table {ways['ngrams']:.2f}, prompt lookup {ways['lookup']:.2f})"
    )


def figures(recent: deque[StepReport]) -> str:
    """The last steps in a few words: loss, tokens per round, accuracy by place, speed."""
    count, seconds = len(recent), sum(r.seconds for r in recent)
    loss = sum(r.loss for r in recent) / count
    tokens = sum(r.tokens_per_round for r in recent) / count
    places = zip(*(r.accuracy for r in recent), strict=True)
    accuracy = " ".join(f"{100 * sum(p) / count:.0f}" for p in places)
    speed = sum(r.drafted for r in recent) / seconds
    return f"loss {loss:.2f}, {tokens:.2f} per round ({accuracy} %), {speed:.0f} tokens/s"
