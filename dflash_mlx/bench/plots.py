"""Plots as inline SVG: 360 units wide, so that letters are of a readable size on a phone.

Colours are classes (`c0`, `c1`, ...) that the page's style sheet knows, in a light and a dark form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log2, log10

from .statistics import Interval

WIDTH, LEFT, RIGHT, TOP, FOOT = 360, 34, 8, 8, 24
COLOURS = 5
Points = Sequence[tuple[float, float]]


def dots(values: Sequence[float], interval: Interval | None, height: int = 150) -> str:
    """A dot a prompt, in ascending order; the median with its interval; a line at 1."""
    ordered = sorted(values)
    most = max(2.0, *ordered) * 1.05
    step = (WIDTH - LEFT - RIGHT) / max(1, len(ordered))
    parts = _ticks(_round_ticks(most), most, height)
    if interval and interval.low is not None and interval.high is not None:
        top, bottom = _y(interval.high, most, height), _y(interval.low, most, height)
        parts.append(
            f'<rect class="band" x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{max(1.0, bottom - top):.1f}"/>'
        )
    parts.append(_line(1.0, most, height, "one"))
    if interval:
        parts.append(_line(interval.value, most, height, "middle"))
    for index, value in enumerate(ordered):
        x = LEFT + (index + 0.5) * step
        parts.append(f'<circle class="c0" cx="{x:.1f}" cy="{_y(value, most, height):.1f}" r="3"/>')
    parts.append(_text(LEFT, height - 6, "prompts, the slowest first", "start"))
    return _svg(parts, height, "speed-up per prompt")


def bars(values: Sequence[float], first: int, unit: str, height: int = 130) -> str:
    """A bar a value, numbered from `first` on.

    Args:
        unit: what the values are; "%" for shares of 1.
    """
    share = unit == "%"
    most = 1.0 if share else max(*values, 1) * 1.05
    step = (WIDTH - LEFT - RIGHT) / max(1, len(values))
    ticks = [0.0, 0.5, 1.0] if share else _round_ticks(most)
    parts = _ticks(ticks, most, height, percent=share)
    for index, value in enumerate(values):
        x, y = LEFT + (index + 0.12) * step, _y(value, most, height)
        parts.append(
            f'<rect class="c0" x="{x:.1f}" y="{y:.1f}" width="{0.76 * step:.1f}" '
            f'height="{height - FOOT - y:.1f}"><title>{value:.3g}</title></rect>'
        )
        if len(values) <= 16 or index % 4 == 0:
            parts.append(_text(x + 0.38 * step, height - 8, str(index + first), "middle"))
    return _svg(parts, height, f"{unit} by number of drafted tokens")


def stack(rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """One bar a row, its parts side by side in milliseconds, all rows on one scale."""
    most = max((sum(parts.values()) for _, parts in rows), default=0) or 1.0
    scale = (WIDTH - 2 * RIGHT) / most
    made, y = [], 4
    for name, parts in rows:
        made.append(_text(RIGHT, y + 11, f"{name}: {1e3 * sum(parts.values()):.1f} ms", "start"))
        x = float(RIGHT)
        for colour, (part, seconds) in enumerate(parts.items()):
            made.append(
                f'<rect class="c{colour % COLOURS}" x="{x:.1f}" y="{y + 16}" '
                f'width="{seconds * scale:.1f}" height="16">'
                f"<title>{escape(part)} {1e3 * seconds:.2f} ms</title></rect>"
            )
            x += seconds * scale
        y += 44
    return _svg(made, max(y, 20), "time of a round by part")


def lines(series: Mapping[str, Points], height: int = 170) -> str:
    """A line a name over lengths, which stand at equal distances as they double."""
    lengths = sorted({x for points in series.values() for x, _ in points})
    most = max((y for points in series.values() for _, y in points), default=1.0) * 1.08
    low, high = (log2(lengths[0]), log2(lengths[-1])) if lengths else (0.0, 1.0)
    reach = (WIDTH - LEFT - RIGHT - 32) / max(high - low, 1.0)

    def place(length: float) -> float:
        return LEFT + 16 + (log2(length) - low) * reach

    parts = _ticks(_round_ticks(most), most, height)
    for colour, points in enumerate(series.values()):
        path = " ".join(f"{place(x):.1f},{_y(y, most, height):.1f}" for x, y in points)
        parts.append(f'<polyline class="l{colour % COLOURS}" points="{path}"/>')
        parts += [
            f'<circle class="c{colour % COLOURS}" cx="{place(x):.1f}" '
            f'cy="{_y(y, most, height):.1f}" r="3"><title>{y:.1f}</title></circle>'
            for x, y in points
        ]
    for length in lengths:
        shown = f"{length / 1024:g}k" if length >= 1024 else f"{length:g}"
        parts.append(_text(place(length), height - 8, shown, "middle"))
    return _svg(parts, height, "tokens per second over context length")


def _svg(parts: Sequence[str], height: float, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _y(value: float, most: float, height: float) -> float:
    return height - FOOT - value / most * (height - TOP - FOOT)


def _line(value: float, most: float, height: float, kind: str) -> str:
    y = _y(value, most, height)
    return f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _ticks(values: Sequence[float], most: float, height: float, percent: bool = False) -> list[str]:
    parts = []
    for value in values:
        shown = f"{100 * value:.0f}%" if percent else f"{value:g}"
        parts.append(_line(value, most, height, "grid"))
        parts.append(_text(LEFT - 4, _y(value, most, height) + 4, shown, "end"))
    return parts


def _round_ticks(most: float) -> list[float]:
    """At most six round numbers from 0 to `most`."""
    ten = 10.0 ** floor(log10(most))
    step = next(s for s in (ten / 5, ten / 2, ten, 2 * ten) if most / s < 6)
    return [round(step * i, 9) for i in range(int(most / step) + 1)]
