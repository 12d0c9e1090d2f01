"""Whether a result is that of its reference, but for rounding."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .cases import Case, Entry, arrays, widened

# The step between neighbouring values of a type, relative to them.
STEP = {mx.float32: 2.0**-23, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}
# What the order of additions and the exponential may change, relative to the usual size of values.
# One product left out of 17408 changes far more somewhere.
SUMS = {mx.float32: 1e-4, mx.float16: 1e-3, mx.bfloat16: 2e-3}


def expected(entry: Entry, case: Case) -> list[mx.array]:
    """The reference's result for the first set of inputs, before it is rounded to their type.

    Computed on the CPU: some GPUs shorten float32 in matrix products.
    """
    with mx.stream(mx.cpu):
        if case.truth:
            result = case.truth()
        else:
            result = entry.reference(*widened(case.sets[0]), **case.options)
        wanted = arrays(case.view(result))
        mx.eval(wanted)
    return wanted


def error(found: Any, wanted: list[mx.array]) -> float:
    """The largest difference, as a multiple of what rounding allows; above 1 is wrong.

    Infinite where shapes differ, a whole number differs or a value is not finite.
    """
    got = arrays(found)
    if [a.shape for a in got] != [a.shape for a in wanted]:
        return float("inf")
    return max(_largest(a, b) for a, b in zip(got, wanted, strict=True))


def _largest(found: mx.array, wanted: mx.array) -> float:
    if not mx.issubdtype(wanted.dtype, mx.floating):
        return 0.0 if mx.array_equal(found, wanted) else float("inf")
    got = found.astype(mx.float32)
    usual = mx.sqrt((wanted * wanted).mean())
    allowed = STEP[found.dtype] * mx.abs(wanted) + SUMS[found.dtype] * usual
    ratio = mx.where(got == wanted, 0, mx.abs(got - wanted) / allowed)
    ratio = mx.where(mx.isfinite(got) & mx.isfinite(ratio), ratio, mx.inf)
    return float(ratio.max())
