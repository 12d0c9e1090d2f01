"""The head of a few rows, down to what decoding takes from it.

Verification and drafting need few of the vocabulary's logits, and their log-sum-exp where they
sample. The kernel reads the head's weight once for up to 16 rows and keeps the largest logits as it
goes; MLX's own writes all logits, and sorts them all for the largest few. A row's result depends
neither on the other rows nor on their number.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .quantized_matmul_small import DTYPES, MAX_ROWS, THREADS, PackedWeight, check
from .source import kernel

MAX_KEEP = 32  # one per lane of a simdgroup
TILE = 32  # rows of the weight that a threadgroup works on at a time
# Strips of the vocabulary: each threadgroup takes one. Enough for 8 to 80 cores to share evenly,
# few enough for what each leaves behind to be no matter.
MOST_GROUPS = 1024


class TopK(NamedTuple):
    """The k largest logits of M rows, descending; of equal ones that of the lower id comes first.

    ids: int32 [M, k].  values: the logits, float32 [M, k].  lse: log of the sum of exp(logit) over
    the vocabulary, float32 [M].
    """

    ids: mx.array
    values: mx.array
    lse: mx.array


def head_topk_reference(
    x: mx.array, weight: PackedWeight | mx.array, k: int = 1, limit: int | None = None
) -> TopK:
    """The k largest of the logits x weight^T, all computed in float32.

    The logits are not rounded to x's dtype: of two tokens that a head in bfloat16 finds equal this
    takes the better one. They have to be finite.

    Args:
        x: [M, K].
        weight: [N, K], packed or dense.
        k: how many, 1 to 32.
        limit: only so many rows of the weight, the first, stand for tokens; all if None.
    """
    if isinstance(weight, PackedWeight):
        exact = _first(weight, limit).dequantised()
    else:
        exact = weight[:limit].astype(mx.float32)
    logits = x.astype(mx.float32) @ exact.T
    left, chosen = logits, []
    for _ in range(k):  # argmax takes the lowest of equals; a sort need not
        chosen.append(mx.argmax(left, axis=-1, keepdims=True))
        left = mx.where(mx.arange(logits.shape[1]) == chosen[-1], -mx.inf, left)
    ids = mx.concatenate(chosen, axis=-1).astype(mx.int32)
    values = mx.take_along_axis(logits, ids, axis=-1)
    return TopK(ids, values, mx.logsumexp(logits, axis=-1))


def head_topk_metal(
    x: mx.array,
    weight: PackedWeight | mx.array,
    k: int = 1,
    limit: int | None = None,
    *,
    threads: int = THREADS[0],
    groups: int | None = None,
) -> TopK:
    """As the reference, by `metal/head_topk.metal` and `metal/head_topk_merge.metal`.

    Args:
        x: [M, K], M from 1 to 16.
        weight: [N, K], packed, or dense of x's dtype.
        k: how many, 1 to 32.
        limit: only so many rows of the weight, the first, stand for tokens; all if None. The
            others are not read.
        threads: per threadgroup, one of THREADS. The order of additions follows from it.
        groups: threadgroups that share the vocabulary, up to one for 32 tokens; chosen if None.
            Changes the log-sum-exp by rounding, and nothing else.

    Raises:
        ValueError: shapes, dtypes or options that the kernel does not take.
    """
    _check(x, weight, threads)
    n = weight.shape[0] if limit is None else limit
    if not 1 <= n <= weight.shape[0]:
        raise ValueError(f"limit={limit}, expected 1 to {weight.shape[0]}, the rows of weight")
    if not 1 <= k <= min(n, MAX_KEEP):
        raise ValueError(f"k={k}, expected 1 to {min(n, MAX_KEEP)}")
    tiles = -(-n // TILE)
    groups = min(tiles, MOST_GROUPS) if groups is None else groups
    if not 1 <= groups <= tiles:
        raise ValueError(f"groups={groups}, expected 1 to {tiles}")
    return _merge(_strips(x, weight, n, k, threads, groups), threads)


def _strips(
    x: mx.array, weight: PackedWeight | mx.array, n: int, k: int, threads: int, groups: int
) -> list[mx.array]:
    """What each threadgroup finds: values and ids [M, groups, k], tallies [M, groups, 2]."""
    if isinstance(weight, PackedWeight):
        parts: tuple[mx.array, ...] = _first(weight, n)[:3]
        group_size, bits = weight.group_size, weight.bits
    else:
        parts, group_size, bits = (weight[:n],) * 3, 1, 0
    m = x.shape[0]
    found: list[mx.array] = kernel(
        "head_topk", ("x", "w", "scales", "biases"), ("values", "ids", "tallies")
    )(
        inputs=[x, *parts],
        output_shapes=[(m, groups, k), (m, groups, k), (m, groups, 2)],
        output_dtypes=[mx.float32, mx.int32, mx.float32],
        grid=(threads * groups, 1, 1),
        threadgroup=(threads, 1, 1),
        template=[
            ("T", x.dtype),
            ("BITS", bits),
            ("GROUP", group_size),
            ("KEEP", k),
            ("TILES_M", -(-m // 8)),
            ("SIMDS", threads // 32),
        ],
    )
    return found


def _merge(found: list[mx.array], threads: int) -> TopK:
    m, _, k = found[0].shape
    values, ids, lse = kernel(
        "head_topk_merge", ("values", "ids", "tallies"), ("top", "top_ids", "lse")
    )(
        inputs=found,
        output_shapes=[(m, k), (m, k), (m,)],
        output_dtypes=[mx.float32, mx.int32, mx.float32],
        grid=(threads, m, 1),
        threadgroup=(threads, 1, 1),
        template=[("KEEP", k), ("SIMDS", threads // 32)],
    )
    return TopK(ids, values, lse)


def _first(weight: PackedWeight, limit: int | None) -> PackedWeight:
    return weight if limit is None else weight.first(limit)


def _check(x: mx.array, weight: PackedWeight | mx.array, threads: int) -> None:
    if x.ndim != 2 or not 1 <= x.shape[0] <= MAX_ROWS or x.shape[1] == 0:
        raise ValueError(f"x is {x.shape}, expected 1 to {MAX_ROWS} rows [M, K]")
    if isinstance(weight, PackedWeight):
        check(x, weight, None, 2, threads)
        return
    if threads not in THREADS:
        raise ValueError(f"threads={threads}, expected one of {THREADS}")
    if x.dtype not in DTYPES:
        raise ValueError(f"x is {x.dtype}, expected one of {DTYPES}")
    wanted = weight.ndim == 2 and weight.shape[0] > 0 and weight.shape[1] == x.shape[1]
    if not wanted or weight.dtype != x.dtype:
        raise ValueError(
            f"weight is {weight.dtype} {weight.shape}, expected {x.dtype} [N, {x.shape[1]}]"
        )
