"""Lines of a kernel that ran, by gcov: kernels of Options(coverage=True).

A line counts if the compiler made code of it in some instance of the kernel; a template function
that no kernel uses has no code, so it is no gap here.  Counts of several runs are merged by
`merge`; `gaps` gives the lines that never ran.
"""

from __future__ import annotations

import ctypes as c
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .build import compiler
from .report import Report

# Appended to a kernel's text; the functions are those of gcc's coverage library.
HOOKS = """
extern "C" void __gcov_dump(void);
extern "C" void __gcov_reset(void);
extern "C" void mtl_coverage_dump() { __gcov_dump(); }
extern "C" void mtl_coverage_reset() { __gcov_reset(); }
"""

Lines = dict[str, dict[int, int]]


def lines_since_reset(library: Path, loaded: c.CDLL, own: frozenset[str]) -> Lines:
    """How often each line of the files `own` ran since `mtl_coverage_reset`."""
    notes = library.with_suffix("") / "kernel.gcno"
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("GCOV_PREFIX")
        os.environ["GCOV_PREFIX"] = folder  # where gcc's library writes, read when it writes
        try:
            loaded.mtl_coverage_dump()
        finally:
            if before is None:
                del os.environ["GCOV_PREFIX"]
            else:
                os.environ["GCOV_PREFIX"] = before
        counts = folder + str(notes.with_suffix(".gcda"))
        shutil.copy(notes, Path(counts).parent)
        command = [_gcov(), "--json-format", "--stdout", counts]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _lines(json.loads(text), own)


def merge(reports: Iterable[Report]) -> Lines:
    """Counts of all runs, by file and line."""
    total: Lines = {}
    for report in reports:
        for file, lines in report.lines_run.items():
            sums = total.setdefault(file, {})
            for line, count in lines.items():
                sums[line] = sums.get(line, 0) + count
    return total


def gaps(reports: Iterable[Report], file: str) -> list[int]:
    """The lines of a file that have code but never ran.  Raises KeyError if none has code."""
    return sorted(line for line, count in merge(reports)[file].items() if count == 0)


def check(reports: Iterable[Report], *names: str) -> None:
    """Print how many lines of each of these files ran.  AssertionError names those that did not."""
    total = merge(reports)
    for file in names:
        missed = sorted(line for line, count in total[file].items() if count == 0)
        every = len(total[file])
        print(f"{file}: {every - len(missed)} of {every} lines ran")
        assert not missed, f"lines of {file} that never ran: {missed}"


def _lines(data: dict, own: frozenset[str]) -> Lines:
    found: Lines = {}
    for file in data["files"]:
        name = Path(file["file"]).name
        if name not in own:
            continue
        sums = found.setdefault(name, {})
        for line in file["lines"]:
            number = line["line_number"]
            sums[number] = sums.get(number, 0) + line["count"]
    return found


def _gcov() -> str:
    path = Path(compiler()[0])
    return str(path.with_name(path.name.replace("g++", "gcov")))
