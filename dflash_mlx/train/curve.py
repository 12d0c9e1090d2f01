"""A training's learning curve as one HTML file, drawn without anything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from .state import read_log

WIDTH, HEIGHT, MARGIN = 720, 280, 48
COLOURS = ("#1f6feb", "#d29922", "#8b949e", "#2da44e", "#cf222e", "#8250df", "#bf3989", "#57606a")
STYLE = "body{font:14px system-ui;margin:2em;max-width:800px}h2{font-size:1em;margin:1.5em 0 .3em}"
MOST = 400  # points of a line; more are averaged

Points = list[tuple[float, float]]
Place = Callable[[float, float], str]


class Line(NamedTuple):
    """A named curve."""

    name: str
    points: Points


def write_curve(log: Path, file: Path) -> None:
    """Draw what a log tells so far.

    Args:
        log: the folder with the log.
        file: gets the page.
    """
    lines = list(read_log(log))
    steps = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "evaluation" in line]
    held = [(line["step"], line["evaluation"]["tokens_per_round"]) for line in held_out]
    names = {"draft": "draft", "ngrams": "n-gram table", "lookup": "prompt lookup"}
    decoded = [Line(name, [(s, ways[way]) for s, ways in held]) for way, name in names.items()]
    simulated = _thinned([(line["step"], line["tokens_per_round"]) for line in steps])
    places = range(len(steps[0]["accuracy"]) if steps else 0)
    charts = (
        ("Held-out tokens per round, decoded", decoded),
        ("Tokens per round in training, simulated", [Line("draft", simulated)]),
        ("Loss", [Line("loss", _thinned([(line["step"], line["loss"]) for line in steps]))]),
        (
            "Accuracy by place, given the true tokens before it",
            [
                Line(f"place {k + 1}", _thinned([(x["step"], x["accuracy"][k]) for x in steps]))
                for k in places
            ],
        ),
    )
    body = "".join(f"<h2>{escape(title)}</h2>{chart(group)}" for title, group in charts)
    page = f"<!doctype html><meta charset=utf-8><title>Learning curve</title><style>{STYLE}</style>"
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(f"{page}<h1>Learning curve</h1>{body}\n", encoding="utf-8")
    temporary.replace(file)


def chart(lines: Sequence[Line]) -> str:
    """Lines over a common pair of axes, as SVG."""
    points = [point for line in lines for point in line.points]
    if not points:
        return "<p>nothing yet</p>"
    right, top = max(x for x, _ in points), max(y for _, y in points) or 1.0
    low = min(0.0, min(y for _, y in points))

    def place(x: float, y: float) -> str:
        across = MARGIN + (WIDTH - 2 * MARGIN) * x / (right or 1)
        down = HEIGHT - MARGIN + (2 * MARGIN - HEIGHT) * (y - low) / (top - low)
        return f"{across:.1f},{down:.1f}"

    drawn = "".join(_drawn(i, line, place) for i, line in enumerate(lines))
    axes = "".join(_axis(place, right, low + (top - low) * part / 4) for part in range(5))
    across = f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 28}" text-anchor="end">step {right:g}</text>'
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{axes}{across}{drawn}</svg>'


def _drawn(number: int, line: Line, place: Place) -> str:
    colour = COLOURS[number % len(COLOURS)]
    path = " ".join(place(x, y) for x, y in line.points)
    legend = f'<text x="{MARGIN + 90 * number}" y="{HEIGHT - 8}" fill="{colour}">'
    last = f" {line.points[-1][1]:.3g}" if line.points else ""
    dots = f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>'
    return f"{dots}{legend}{escape(line.name)}{last}</text>"


def _axis(place: Place, right: float, value: float) -> str:
    (x0, y0), (x1, y1) = (place(x, value).split(",") for x in (0, right))
    line = f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="#d0d7de"/>'
    return f'{line}<text x="{MARGIN - 6}" y="{y0}" text-anchor="end">{value:.3g}</text>'


def _thinned(points: Points) -> Points:
    """At most `MOST` points, each the mean of its neighbours."""
    size = -(-len(points) // MOST) or 1
    return [_mean(points[first : first + size]) for first in range(0, len(points), size)]


def _mean(points: Points) -> tuple[float, float]:
    return points[-1][0], sum(y for _, y in points) / len(points)
