"""Pages and plots: well-formed, escaped, self-contained, and drawn to scale."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from dflash_mlx.bench import plots
from dflash_mlx.bench.page import html, markdown
from dflash_mlx.bench.recording import Recording
from dflash_mlx.bench.statistics import median_interval

from .bench_records import answer, rounds, turn

NASTY = """<script>alert("x")</script> & | `a` *b* _c_"""
VOID = {"meta", "br", "img", "link", "input"}


def recording(name: str = NASTY, kind: str = "sets") -> Recording:
    sizes = ("1024 tokens", "2048 tokens") if kind == "context" else (name,)
    made = Recording(
        kind,
        {"max_tokens": 8, "repeat": 1, "sampling": {"temperature": 0.0, "seed": 0}},
        [{"name": name, "source": name, "sample": False, "problems": 2, "fingerprint": "f"}],
    )
    for size in sizes:
        shared = {"pair": name, "dataset": size}
        for problem in ("a", "b", "c"):
            fast = turn(decode_s=0.5, rounds=rounds(1, 2, 0))
            made.answers.append(answer(problem, "plain", **shared))
            made.answers.append(answer(problem, "dflash 4", fast, verdict="identical", **shared))
    parts = {"draft": 0.01, "verify": 0.02, "accept": 0.0, "commit": 0.0, "host": 0.001}
    made.splits.append({"pair": name, "dataset": name, "arm": "dflash 4", "rounds": 3, **parts})
    return made


class Checker(HTMLParser):
    """Every tag is closed in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not any(name in ("src", "href") or name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("kind", ["sets", "context"])
def test_a_page_is_whole_and_needs_nothing_else(kind: str) -> None:
    page = html(recording(kind=kind))
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert "script" not in checker.seen
    assert "&lt;script&gt;" in page
    assert not re.search(r"url\(|@import|https?:", page)
    assert checker.seen.count("svg") == (2 if kind == "context" else 4)


def test_markdown_is_one_table() -> None:
    text = markdown(recording())
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert cells == [14] * 4
    assert "\\<script" in rows[-1]


def test_an_empty_run_is_a_page_all_the_same() -> None:
    empty = recording()
    empty.answers, empty.splits = [], []
    assert "nothing measured" in html(empty)
    assert "nothing measured" in markdown(empty)


def test_bars_are_to_scale() -> None:
    svg = ElementTree.fromstring(plots.bars([1.0, 0.5, 0.25], 1, "%"))
    heights = [float(bar.attrib["height"]) for bar in svg.iter("rect")]
    assert heights[1] / heights[0] == pytest.approx(0.5, abs=0.01)
    assert heights[2] / heights[0] == pytest.approx(0.25, abs=0.01)
    assert [t.text for t in svg.iter("text")] == ["0%", "50%", "100%", "1", "2", "3"]


def test_dots_stand_in_ascending_order() -> None:
    values = [1.5, 0.5, 3.0]
    svg = ElementTree.fromstring(plots.dots(values, median_interval(values)))
    heights = [float(dot.attrib["cy"]) for dot in svg.iter("circle")]
    assert heights == sorted(heights, reverse=True)
    lines = {line.attrib["class"]: float(line.attrib["y1"]) for line in svg.iter("line")}
    assert lines["middle"] == pytest.approx(heights[1], abs=0.11)
    assert heights[0] > lines["one"] > heights[1]


def test_parts_share_one_scale() -> None:
    rows = [("a", {"draft": 0.01, "verify": 0.03}), ("b", {"draft": 0.01, "verify": 0.01})]
    svg = ElementTree.fromstring(plots.stack(rows))
    widths = [float(part.attrib["width"]) for part in svg.iter("rect")]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.3)
    assert widths[2] == widths[3] == widths[0]
    assert sum(widths[:2]) <= plots.WIDTH


def test_lengths_that_double_stand_at_equal_distances() -> None:
    svg = ElementTree.fromstring(plots.lines({"plain": [(1024, 10), (2048, 8), (4096, 5)]}))
    places = [float(dot.attrib["cx"]) for dot in svg.iter("circle")]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)
    assert [t.text for t in svg.iter("text")][-3:] == ["1k", "2k", "4k"]


@pytest.mark.parametrize("most", [0.3, 1.0, 2.1, 9.99, 10.0, 73.0, 1234.0])
def test_ticks_are_few_and_round(most: float) -> None:
    ticks = plots._round_ticks(most)
    assert 3 <= len(ticks) <= 6
    assert ticks[-1] <= most
    assert all(len(f"{tick:g}".replace(".", "").strip("0")) <= 2 for tick in ticks)
