"""Times the kernels beside what they replace; see `dflash-mlx bench kernels`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import mlx.core as mx

from ...errors import UsageError
from ...kernels.quantized_matmul_small import BITS
from .agreement import error, expected
from .cases import DTYPES, MAX_ROWS, Call, Case, Entry, Inputs, Kind, arrays
from .results import Result, Timed
from .table import ENTRIES
from .timing import Pace, Way, interleaved

ROWS = (1, 2, 4, 5, 8, 12, 16)
ROTATION = 256 * 2**20  # several times what any chip's system-level cache holds


@dataclass(frozen=True)
class Wanted:
    """What to time.

    Attributes:
        ops: names of entries; none for all.
        bits: of quantised weights; none for what each entry has.
        threads: most threads to a threadgroup; None for what each kernel prefers.
        sweep: time every threadgroup size.
        small: tiny sizes, for a quick look.
        reference: the references instead of the kernels, which needs no Metal.
    """

    ops: Sequence[str] = ()
    rows: Sequence[int] = ROWS
    dtype: str = "bfloat16"
    bits: Sequence[int] = ()
    threads: int | None = None
    sweep: bool = False
    small: bool = False
    reference: bool = False
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True)
class Subject:
    """An entry at one size: weights that are made once, and the widths to time them at."""

    entry: Entry
    label: str
    sizes: Mapping[str, int]
    dtype: str
    bits: int | None
    rows: Sequence[int]


def plan(wanted: Wanted) -> list[Subject]:
    """What will be timed, in order.

    Raises:
        UsageError: unknown names or numbers, or nothing to time.
    """
    _check(wanted)
    subjects = []
    for entry in ENTRIES:
        if wanted.ops and entry.name not in wanted.ops:
            continue
        rows = [r for r in wanted.rows if entry.least <= r <= entry.most]
        for label, sizes in (entry.small if wanted.small else entry.sizes).items():
            for bits in (wanted.bits or entry.bits) if entry.bits else (None,):
                dtype = entry.dtype or wanted.dtype
                subjects.append(Subject(entry, label, sizes, dtype, bits, rows))
    subjects = [subject for subject in subjects if subject.rows]
    if not subjects:
        raise UsageError("these rows and operations leave nothing to time; give more --rows")
    return subjects


def run(subject: Subject, wanted: Wanted) -> Iterator[Result]:
    """Time one subject, width by width. What cannot run is a result with a problem."""
    mx.random.seed(0)
    rotation = 0 if wanted.small else ROTATION
    kind = Kind(DTYPES[subject.dtype], subject.bits, rotation)
    try:
        make = subject.entry.open(subject.sizes, kind)
    except Exception as problem:  # sizes that no memory holds, bits that MLX has not
        yield from (_result(subject, rows, [_failed(problem)]) for rows in subject.rows)
        return
    for rows in subject.rows:
        try:
            yield _measure(subject, wanted, rows, make(rows))
        except Exception as problem:
            yield _result(subject, rows, [_failed(problem)])
    del make
    mx.clear_cache()


def _measure(subject: Subject, wanted: Wanted, rows: int, case: Case) -> Result:
    truth = expected(subject.entry, case)
    ways: list[tuple[Timed, Way]] = []
    for ladder in _ladders(subject.entry, wanted):
        for threads in ladder:
            way = _ours(subject.entry, case, threads)
            name = "kernel" if threads else "reference"
            ways.append((_tried(Timed(name, threads), way, case, truth), way))
            if ways[-1][0].error is not None:
                break
    if not ways:
        problem = f"it has no threadgroup of {wanted.threads} threads or fewer"
        return _result(subject, rows, [Timed("kernel", problem=problem)])
    ours = len(ways)
    for name, call in case.stock.items():
        way = partial(_stock, call)
        ways.append((_tried(Timed(name), way, case, truth), way))
    result = _result(subject, rows, [timed for timed, _ in ways[:ours]])
    return _timed(result, case, ways, wanted.pace)


def _timed(result: Result, case: Case, ways: Sequence[tuple[Timed, Way]], pace: Pace) -> Result:
    """The result with times of all that ran and is right; of MLX's own what ran."""
    ours = len(result.ours)
    good = {i: way for i, (t, way) in enumerate(ways) if not t.problem}
    if not any(i < ours for i in good):
        good = {}
    times = interleaved(case, {str(i): way for i, way in good.items()}, pace) if good else None
    samples = times.samples if times else {}
    done = [replace(t, samples=samples.get(str(i), ())) for i, (t, _) in enumerate(ways)]
    return replace(
        result,
        ours=done[:ours],
        stock=done[ours:],
        bytes=case.bytes,
        flops=case.flops,
        waiting=times.waiting if times else 0.0,
        calls=times.calls if times else 0,
    )


def _tried(timed: Timed, way: Way, case: Case, truth: list[mx.array]) -> Timed:
    """What comes of a first call."""
    try:
        found = way(case.sets[0], case.hint(0))
        mx.eval(arrays(found))
    except Exception as problem:
        return replace(timed, problem=_reason(problem))
    seen = arrays(case.view(found))
    if timed.name not in OURS:
        truth = truth[: len(seen)]  # MLX's operation may give less
    off = error(seen, truth)
    if off <= 1 or timed.name not in OURS:
        return replace(timed, error=off)
    return replace(timed, error=off, problem=f"WRONG: {_off(off)}")


OURS = ("kernel", "reference")


def _off(error: float) -> str:
    if error == float("inf"):
        return "not comparable with the reference"
    return f"{error:.3g} times as far from the reference as rounding allows"


def _ladders(entry: Entry, wanted: Wanted) -> list[list[int | None]]:
    """Threadgroup sizes: of each list the first that the chip takes is timed."""
    if wanted.reference:
        return [[None]]
    sizes: Sequence[int] = entry.threads
    if wanted.threads is not None:
        sizes = sorted((t for t in sizes if t <= wanted.threads), reverse=True)
    if wanted.sweep:
        return [[threads] for threads in sorted(sizes, reverse=True)]
    return [list(sizes)]


def _ours(entry: Entry, case: Case, threads: int | None) -> Way:
    def way(inputs: Inputs, _: Inputs) -> Any:
        if threads is None:
            return entry.reference(*inputs, **case.options)
        return entry.kernel(*inputs, **case.options, threads=threads)

    return way


def _stock(call: Call, inputs: Inputs, hint: Inputs) -> Any:
    return call(*inputs, *hint)


def _result(subject: Subject, rows: int, ours: Sequence[Timed]) -> Result:
    return Result(
        op=subject.entry.name,
        label=subject.label,
        sizes=subject.sizes,
        dtype=subject.dtype,
        bits=subject.bits,
        rows=rows,
        ours=ours,
    )


def _failed(problem: Exception) -> Timed:
    return Timed("kernel", problem=_reason(problem))


def _reason(problem: Exception) -> str:
    """A line of what may be a compiler's whole output: the first with an error in it."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    found = next((line for line in lines if "error:" in line), lines[0] if lines else "")
    return f"{type(problem).__name__}: {found}"[:300]


def _check(wanted: Wanted) -> None:
    known = [entry.name for entry in ENTRIES]
    for name in wanted.ops:
        if name not in known:
            raise UsageError(f"no kernel is called {name!r}; there are {', '.join(known)}")
    for rows in wanted.rows:
        if not 1 <= rows <= MAX_ROWS:
            raise UsageError(f"{rows} rows: expected 1 to {MAX_ROWS}")
    if wanted.dtype not in DTYPES:
        raise UsageError(f"no type is called {wanted.dtype!r}; there are {', '.join(DTYPES)}")
    for bits in wanted.bits:
        if bits not in BITS:
            raise UsageError(f"{bits} bits: expected one of {', '.join(map(str, BITS))}")
