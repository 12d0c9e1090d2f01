"""What was measured, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median
from typing import Any

from .timing import spread


@dataclass(frozen=True)
class Timed:
    """One way to do an operation.

    Attributes:
        name: of MLX's operation, or "kernel" or "reference".
        threads: to a threadgroup; None where that is not ours to say.
        error: as a multiple of what rounding allows; None where it did not run.
        problem: why there are no samples, in a line.
        samples: seconds per call, those of all ways taken in turns.
    """

    name: str
    threads: int | None = None
    error: float | None = None
    problem: str | None = None
    samples: Sequence[float] = ()

    @property
    def inexact(self) -> bool:
        """Whether the result differs from the reference's by more than rounding.

        Of ours that is wrong; some of MLX's round on the way.
        """
        return self.error is not None and self.error > 1

    @property
    def seconds(self) -> float | None:
        """The median; None where it was not timed, or takes less than the clock can tell."""
        return median(self.samples) or None if self.samples else None


@dataclass(frozen=True)
class Result:
    """One operation at one size and width.

    Attributes:
        bytes, flops: of a call; 0 where it could not be set up.
        waiting: seconds by which calls of a chain wait for each other, taken off from all samples.
        calls: in a chain.
    """

    op: str
    label: str
    sizes: Mapping[str, int]
    dtype: str
    bits: int | None
    rows: int
    ours: Sequence[Timed]
    stock: Sequence[Timed] = ()
    bytes: int = 0
    flops: int = 0
    waiting: float = 0.0
    calls: int = 0

    @property
    def wrong(self) -> bool:
        """Whether a kernel gave a wrong result."""
        return any(way.inexact for way in self.ours)

    @property
    def failed(self) -> bool:
        """Whether nothing of ours ran."""
        return not any(way.samples for way in self.ours) and not self.wrong

    @property
    def rival(self) -> Timed | None:
        """The fastest of MLX's operations; None where none was timed."""
        timed = [way for way in self.stock if way.seconds]
        return min(timed, key=lambda way: way.seconds or 0.0) if timed else None

    @property
    def best(self) -> Timed | None:
        """The fastest of ours; None where none was timed."""
        timed = [way for way in self.ours if way.seconds]
        return min(timed, key=lambda way: way.seconds or 0.0) if timed else None

    def gb_s(self, way: Timed) -> float | None:
        """Gigabytes per second, every byte counted once."""
        return self.bytes / way.seconds / 1e9 if way.seconds else None

    def tflop_s(self, way: Timed) -> float | None:
        """Useful operations, in 1e12 per second."""
        return self.flops / way.seconds / 1e12 if way.seconds else None

    def ratio(self, way: Timed) -> tuple[float, float, float] | None:
        """How many times faster than MLX: the ratio of medians, quartiles of single ratios."""
        rival = self.rival
        if rival is None or not rival.seconds or not way.seconds:
            return None
        pairs = zip(rival.samples, way.samples, strict=True)
        low, _, high = spread([theirs / ours for theirs, ours in pairs if ours])
        return rival.seconds / way.seconds, low, high

    def as_dict(self, copy_gb_s: float | None) -> dict[str, Any]:
        """In the form of `--json`: times in microseconds."""
        rival = self.rival
        return {
            "op": self.op,
            "size": self.label,
            **{"sizes": dict(self.sizes), "dtype": self.dtype, "bits": self.bits},
            **{"rows": self.rows, "bytes": self.bytes, "flops": self.flops},
            **{"calls": self.calls, "waiting_us": _micro(self.waiting)},
            "ours": [self._way(way, copy_gb_s, "wrong") | self._ratios(way) for way in self.ours],
            "stock": [self._way(way, copy_gb_s, "inexact") for way in self.stock],
            "fastest_stock": rival and rival.name,
        }

    def _way(self, way: Timed, copy_gb_s: float | None, inexact: str) -> dict[str, Any]:
        low, middle, high = spread(list(way.samples)) if way.samples else (None, None, None)
        rate = self.gb_s(way)
        return {
            **{"name": way.name, "threads": way.threads},
            "status": inexact if way.inexact else "ok" if way.samples else "failed",
            **{"problem": way.problem, "error": _finite(way.error)},
            **{"median_us": _micro(middle), "low_us": _micro(low), "high_us": _micro(high)},
            "samples": len(way.samples),
            **{"gb_s": _rounded(rate), "tflop_s": _rounded(self.tflop_s(way))},
            "of_copy": _rounded(rate / copy_gb_s if rate and copy_gb_s else None),
        }

    def _ratios(self, way: Timed) -> dict[str, float | None]:
        middle, low, high = self.ratio(way) or (None, None, None)
        return {
            "ratio": _rounded(middle),
            "ratio_low": _rounded(low),
            "ratio_high": _rounded(high),
        }


def ladders(results: Sequence[Result]) -> dict[str, dict[int, float]]:
    """Per operation and threadgroup size, how many times longer than with a case's best size.

    The geometric mean over the cases in which that size ran. None of operations with one size.
    """
    slower: dict[str, dict[int, list[float]]] = {}
    for result in results:
        best = result.best
        for way in result.ours:
            if best and best.seconds and way.seconds and way.threads:
                lengths = slower.setdefault(result.op, {}).setdefault(way.threads, [])
                lengths.append(way.seconds / best.seconds)
    return {
        op: {threads: round(geometric_mean(found), 4) for threads, found in by.items()}
        for op, by in slower.items()
        if len(by) > 1
    }


def _micro(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e6, 3)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _finite(value: float | None) -> float | str | None:
    """JSON knows no infinity."""
    return "infinite" if value == float("inf") else _rounded(value)
