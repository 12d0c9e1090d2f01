"""The figures of `dflash-mlx bench kernels` on a screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from .render import count

if TYPE_CHECKING:
    from dflash_mlx.bench.kernels.results import Result, Timed
    from dflash_mlx.bench.setting import Setting

HEADS = ("rows", "threads", "µs", "GB/s", "of copy", "TFLOP/s", "MLX µs ", "ratio", "quartiles")
WIDTHS = (4, 7, 8, 6, 7, 7, 8, 5, 11)
MORE = ("MLX GB/s", "the fastest of MLX")  # where the screen has room
ROOM = 120


def about(setting: Setting) -> Iterator[str]:
    """Where it ran."""
    cores = f", {setting.cores} GPU cores" if setting.cores else ""
    software = (f"{name} {version}" for name, version in setting.versions.items() if version)
    wanted = ("mlx ", "mlx-lm ", "dflash-mlx ")
    yield f"{setting.device}{cores}, {setting.system}"
    yield ", ".join(text for text in software if text.startswith(wanted))
    yield f"a plain copy reads and writes {setting.copy_gb_s:.4g} GB/s: 100 % under 'of copy'"


def legend() -> Iterator[Text]:
    """What the columns are."""
    yield Text(
        "µs: median of a call. GB/s: weights, caches, inputs and outputs, each counted once. "
        "TFLOP/s: useful ones. ratio: times faster than MLX, with the quartiles of its samples. "
        "~: MLX's own result is off by more than rounding.",
        style="dim",
    )


def table(results: Sequence[Result], setting: Setting, width: int) -> Table:
    """One size at all its widths."""
    wide = width >= ROOM
    title = Text(_title(results[0]))
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head, least in zip(HEADS, WIDTHS, strict=True):
        made.add_column(head, justify="right", min_width=least, no_wrap=True, header_style="dim")
    for head in MORE if wide else ():
        made.add_column(head, no_wrap=True, header_style="dim")
    for result in results:
        for way in result.ours:
            cells = _cells(result, way, setting)
            best = len(result.ours) > 1 and way is result.best
            extra = _rival(result) if wide else ()
            made.add_row(*cells, *extra, style="bold" if best else None)
    return made


def problems(results: Sequence[Result]) -> Iterator[Text]:
    """What did not run or is wrong, and why."""
    for result in results:
        for way in (*result.ours, *result.stock):
            if way.problem:
                yield Text(
                    f"{_whose(way)} at {count(result.rows, 'row')}: {way.problem}",
                    style="bold red" if way.inexact else "yellow",
                )


def sweep_lines(ladders: Mapping[str, Mapping[int, float]]) -> Iterator[str]:
    """Which size of threadgroups was best, and how far behind the others are."""
    for op, by in ladders.items():
        order = sorted(by, key=lambda threads: by[threads])
        shown = ", ".join(f"{threads} {by[threads]:.2f}" for threads in order)
        yield f"{op}: time by threads, 1 is the best of each case: {shown}"


def verdict(results: Sequence[Result], interrupted: bool) -> str:
    """The last line."""
    if not results:
        return "stopped before anything was measured"
    pairs = [(r, r.best) for r in results]
    ratios = [best and r.ratio(best) for r, best in pairs if not (r.failed or r.wrong)]
    faster = sum(ratio[0] > 1 for ratio in ratios if ratio)
    slower = sum(ratio[0] <= 1 for ratio in ratios if ratio)
    short = sum(not ratio for ratio in ratios)
    failed, wrong = sum(r.failed for r in results), sum(r.wrong for r in results)
    parts = [f"faster than MLX in {faster}, not faster in {slower}"]
    parts += [f"{short} without a ratio"] if short else []
    parts += [f"{failed} did not run"] if failed else []
    parts += [f"[bold red]{wrong} WRONG[/]"] if wrong else []
    stopped = "stopped after " if interrupted else ""
    return f"{stopped}{count(len(results), 'case')}: {', '.join(parts)}"


def _title(result: Result) -> str:
    bits = f"{result.bits} bits, " if result.bits else ""
    return f"{result.label}, {bits}{result.dtype}"


def _whose(way: Timed) -> str:
    return f"{way.name} of {way.threads} threads" if way.threads else way.name


def _cells(result: Result, way: Timed, setting: Setting) -> list[str | Text]:
    rate, rival, ratio = result.gb_s(way), result.rival, result.ratio(way)
    return [
        str(result.rows),
        str(way.threads or "-"),
        _micro(way.seconds),
        _rate(rate),
        _figure(rate and 100 * rate / setting.copy_gb_s, 0, " %"),
        _figure(result.tflop_s(way), 2),
        _micro(rival.seconds if rival else None) + ("~" if rival and rival.inexact else ""),
        _verdict(way, ratio),
        f"{_times(ratio[1])} - {_times(ratio[2])}" if ratio else "",
    ]


def _rival(result: Result) -> tuple[str, str]:
    rival = result.rival
    return (_rate(result.gb_s(rival)), rival.name) if rival else ("", "")


def _verdict(way: Timed, ratio: tuple[float, float, float] | None) -> Text:
    if way.inexact:
        return Text("WRONG", style="bold red")
    if way.problem:
        return Text("no", style="yellow")
    if ratio is None:
        return Text("-")
    return Text(_times(ratio[0]), style="green" if ratio[0] > 1 else "red")


def _times(ratio: float) -> str:
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def _rate(value: float | None) -> str:
    return _figure(value, 0 if value and value >= 10 else 2)


def _micro(seconds: float | None) -> str:
    return _figure(seconds and seconds * 1e6, 1 if (seconds or 0) < 0.01 else 0)


def _figure(value: float | None, digits: int, unit: str = "") -> str:
    return "-" if value is None else f"{value:.{digits}f}{unit}"
