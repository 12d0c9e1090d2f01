"""DFlash 2's own operations. The plain ones are those of `drafts/dflash2.py`, compiled."""

from __future__ import annotations

import mlx.core as mx

from ...kernels.candidate_path import Path
from .cases import Case, Inputs, Kind, Make, Sizes, bytes_of, normal, size, times


def open_conv(sizes: Sizes, kind: Kind) -> Make:
    """size, reach, group; side: 0 before a sublayer, 1 behind it, with the residual."""
    width, reach, group, side = (sizes[name] for name in ("size", "reach", "group", "side"))
    one = bytes_of(2, reach, width, dtype=kind.dtype)
    bases = times(kind.sets(one), lambda: normal(2, reach, width, dtype=kind.dtype, scale=0.5))
    made = 2 * reach * width // group

    def case(rows: int) -> Case:
        def inputs(base: mx.array) -> Inputs:
            x, residual = (normal(1, rows, width, dtype=kind.dtype) for _ in range(2))
            dynamic = normal(rows, made, dtype=kind.dtype, scale=0.5)
            return x, base, dynamic, side, *((residual,) if side else ())

        sets = [inputs(base) for base in bases]
        # Of both arrays of coefficients one half is used.
        moved = (2 + side) * size(sets[0][0]) + (one + size(sets[0][2])) // 2
        return Case(sets, {"plain MLX": _convolved}, moved, 3 * rows * reach * width)

    return case


@mx.compile
def _convolved(
    x: mx.array, base: mx.array, dynamic: mx.array, side: int, residual: mx.array | None = None
) -> mx.array:
    _, reach, width = base.shape
    groups = dynamic.shape[1] // (2 * reach)
    split = dynamic.reshape(-1, 2, reach, groups, 1)[:, side]
    weight = base[side].reshape(reach, groups, -1) + split
    weight = weight.reshape(-1, reach, width)
    total = weight[:, 0] * x
    for back in range(1, reach):
        total = total + weight[:, back] * mx.pad(x, [(0, 0), (back, 0), (0, 0)])[:, : x.shape[1]]
    return total if residual is None else residual + total


def open_path(sizes: Sizes, kind: Kind) -> Make:
    """candidates; sampled: 1 with noise. A block drafts a token less than it is wide."""
    k, sampled = sizes["candidates"], bool(sizes["sampled"])

    def case(rows: int) -> Case:
        n = rows - 1

        def inputs() -> Inputs:
            ids = mx.random.randint(0, 2**17, (n, k))
            noise = (mx.random.gumbel((n, k)),) if sampled else ()
            return normal(n, k, k), ids, *noise

        sets = times(kind.sets(bytes_of(n, k, k, dtype=mx.float32)), inputs)
        moved = size(sets[0]) + bytes_of(n, k + 2, dtype=mx.float32)
        return Case(sets, {"plain MLX": _walked}, moved, n * k * k * (1 + sampled))

    return case


@mx.compile
def _walked(scores: mx.array, ids: mx.array, noise: mx.array | None = None) -> Path:
    sums = scores if noise is None else scores + noise[:, None]
    places = [mx.zeros((), mx.int32)]
    for choice in mx.argmax(sums, axis=-1).astype(mx.int32):
        places.append(mx.take(choice, places[-1]))
    path, before = mx.stack(places[1:]), mx.stack(places[:-1])
    rows = mx.take_along_axis(scores, before[:, None, None], axis=1)[:, 0]
    return Path(mx.take_along_axis(ids, path[:, None], axis=-1)[:, 0], path, rows)
