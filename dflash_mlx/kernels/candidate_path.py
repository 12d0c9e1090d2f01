"""The walk of DFlash 2's selector through its candidates, see `drafts/dflash2.py`.

In plain MLX every step of the walk is a dispatch, and the rows it chose from are gathered by one
more. The kernel does the walk and the gathering in one.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .source import kernel

THREADS = (256, 128, 64, 32, 512)  # in the order to try them
SLOTS = 16384  # choices that fit into 32 KiB of threadgroup memory, two bytes each


class Path(NamedTuple):
    """The candidates that were chosen.

    Attributes:
        drafted: int32 [n], their ids.
        places: int32 [n], where each stands among its k candidates.
        rows: float32 [n, k], the scores that each was chosen from, without noise.
    """

    drafted: mx.array
    places: mx.array
    rows: mx.array


def candidate_path_reference(
    scores: mx.array, ids: mx.array, noise: mx.array | None = None
) -> Path:
    """Choose candidates one behind the other, each the best behind the one before it.

    Args:
        scores: float32 [n, k, k]; [i, a, b] is candidate b at place i behind candidate a at place
            i - 1. At place 0 row 0 counts.
        ids: int32 [n, k].
        noise: float32 [n, k], added to the scores before the largest is chosen. With Gumbel noise
            the path is drawn from the softmax of each of its rows. None is greedy.

    Of equal sums the first is chosen.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    _check(scores, ids, noise)
    sums = scores if noise is None else scores + noise[:, None]
    before, places, rows = mx.zeros((), mx.int32), [], []
    for choices, row in zip(mx.argmax(sums, axis=-1).astype(mx.int32), scores, strict=True):
        rows.append(mx.take(row, before, axis=0))
        before = mx.take(choices, before)
        places.append(before)
    path = mx.stack(places)
    drafted = mx.take_along_axis(ids, path[:, None], axis=-1)[:, 0]
    return Path(drafted, path, mx.stack(rows))


def candidate_path_metal(
    scores: mx.array,
    ids: mx.array,
    noise: mx.array | None = None,
    threads: int = THREADS[0],
) -> Path:
    """The kernel; see the reference. `threads` is one of THREADS and changes nothing."""
    _check(scores, ids, noise)
    if threads not in THREADS:
        raise ValueError(f"threads is {threads}, expected one of {THREADS}")
    n, k, _ = scores.shape
    if n * k > SLOTS:
        raise ValueError(f"scores is {_seen(scores)}, expected n * k of at most {SLOTS}")
    outputs = kernel("candidate_path", ("scores", "ids", "noise"), Path._fields)(
        inputs=[scores, ids, scores if noise is None else noise],
        # Slots by powers of two, so that few widths need an instance of their own.
        template=[
            ("K", k),
            ("Sampled", noise is not None),
            ("Slots", 1 << (n * k - 1).bit_length()),
        ],
        grid=(threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(n,), (n,), (n, k)],
        output_dtypes=[mx.int32, mx.int32, mx.float32],
    )
    return Path(*outputs)


def _check(scores: mx.array, ids: mx.array, noise: mx.array | None) -> None:
    if scores.ndim != 3 or scores.size == 0 or scores.shape[1] != scores.shape[2]:
        raise ValueError(f"scores is {_seen(scores)}, expected float32 [n, k, k]")
    wanted = [
        ("scores", scores, mx.float32, scores.shape),
        ("ids", ids, mx.int32, scores.shape[:2]),
    ]
    if noise is not None:
        wanted.append(("noise", noise, mx.float32, scores.shape[:2]))
    for name, array, dtype, shape in wanted:
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{name} is {_seen(array)}, expected {dtype} {list(shape)}")


def _seen(array: mx.array) -> str:
    return f"{array.dtype} {list(array.shape)}"
