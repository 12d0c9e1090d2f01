"""A run as one HTML page that needs nothing else, and as markdown."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from . import plots
from .context import size_of
from .figures import Figures
from .recording import Recording
from .statistics import median_interval
from .wording import HEADS, LEGEND, PARTS, cells, load_line, notes, split_line

TEMPLATE = "bench.html.jinja"


def html(recording: Recording) -> str:
    """The page."""
    source = (files("dflash_mlx") / "assets" / TEMPLATE).read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        source
    )
    figures = recording.figures
    drawn = [] if recording.kind == "context" else figures
    return template.render(
        title=_title(recording),
        about=list(about(recording)),
        heads=HEADS,
        rows=[(row, cells(row)) for row in figures],
        legend=LEGEND,
        notes=list(notes(figures)),
        speedups=[(_name(row), row.differs, _speedups(row)) for row in drawn if row.speedups],
        drafts=[(_name(row), *_drafts(row)) for row in drawn if row.drafts],
        split=_split(recording),
        parts=PARTS,
        context=list(_context(recording)),
    )


def markdown(recording: Recording) -> str:
    """The tables and notes."""
    figures = recording.figures
    lines = [f"# {_title(recording)}", "", *(f"- {line}" for line in about(recording)), ""]
    heads = ("pair", *HEADS)
    lines += [_row(heads), _row(["---"] * len(heads))]
    lines += [_row([row.pair, *(cells(row)[head] for head in HEADS)]) for row in figures]
    lines += ["", LEGEND.replace("*", r"\*"), ""]
    lines += [f"- {_plain(line)}" for line in (*notes(figures), *map(split_line, recording.splits))]
    return "\n".join(lines) + "\n"


def about(recording: Recording) -> Iterator[str]:
    """Where, when and how it was measured."""
    machine = recording.machine
    if machine:
        cores = f", {machine['gpu_cores']} GPU cores" if machine.get("gpu_cores") else ""
        wanted = ("dflash-mlx", "mlx", "mlx-lm", "python")
        software = (f"{name} {machine['versions'].get(name)}" for name in wanted)
        yield f"{machine['device']}{cores}, {machine['system']}; {', '.join(software)}"
        yield f"a plain copy of memory: {machine['copy_gb_s']:g} GB/s, read and written"
        yield from _power(machine)
    for pair in recording.pairs:
        draft = f" with {pair['draft']}" if pair["draft"] else ""
        yield f"{pair['name']}: {pair['model']}{draft}, {pair['dtype']}"
    for each in recording.sets:
        kind = "a small sample of ours" if each["sample"] else each["source"]
        yield f"{each['name']}: {each['problems']} prompts, {kind}"
    asked = recording.settings
    chosen = f"temperature {asked['sampling']['temperature']:g}, seed {asked['sampling']['seed']}"
    yield f"up to {asked['max_tokens']} tokens, {asked['repeat']} times, {chosen}"
    yield from map(load_line, recording.throughput)
    yield f"begun {recording.begun}" + ("" if recording.whole else ", stopped early")


def _power(machine: dict[str, Any]) -> Iterator[str]:
    for when in ("begin", "end"):
        state = machine.get(f"power_{when}")
        if state:
            charge = f" at {state['charge']} %" if state["charge"] is not None else ""
            low = ", low power mode" if state["low_power"] else ""
            heat = ", ".join(f"{name} {value}" for name, value in state["limits"].items())
            yield f"power at the {when}: {state['source']}{charge}{low}; heat: {heat or 'nothing'}"


def _title(recording: Recording) -> str:
    names = ", ".join(dict.fromkeys(answer.pair for answer in recording.answers))
    return f"dflash-mlx bench: {names or 'nothing measured'}"


def _name(row: Figures) -> str:
    return f"{row.pair}: {row.dataset}, {row.arm}"


def _speedups(row: Figures) -> Markup:
    values = list(row.speedups.values())
    return Markup(plots.dots(values, median_interval(values)))


def _drafts(row: Figures) -> tuple[Markup, Markup]:
    assert row.drafts is not None
    return (
        Markup(plots.bars(row.drafts.by_position, 1, "%")),
        Markup(plots.bars(row.drafts.histogram, 0, "rounds")),
    )


def _split(recording: Recording) -> Markup | None:
    rows = [
        (f"{e['pair']}: {e['dataset']}, {e['arm']}", {part: e[part] for part in PARTS})
        for e in recording.splits
    ]
    return Markup(plots.stack(rows)) if rows else None


def _context(recording: Recording) -> Iterator[tuple[str, list[str], Markup]]:
    """A plot for every pair: tokens per second over the length of the prompt."""
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in recording.figures if recording.kind == "context" else ():
        if row.decode_tok_s:
            points = series.setdefault(row.pair, {}).setdefault(row.arm, [])
            points.append((size_of(row.dataset), row.decode_tok_s.value))
    for pair, arms in series.items():
        yield pair, list(arms), Markup(plots.lines(arms))


def _row(values: Any) -> str:
    return "| " + " | ".join(_plain(value) for value in values) + " |"


def _plain(text: str) -> str:
    """Text that markdown does not take for markup."""
    for mark in ("\\", "|", "*", "_", "`", "<", "["):
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
