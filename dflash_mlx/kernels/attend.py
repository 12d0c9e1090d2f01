"""What attends to a cache: the kernel of `block_attention`, or MLX."""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from . import rules
from .block_attention import (
    CHUNK,
    FLOATS,
    HEAD_SIZES,
    MOST_ROWS,
    THREADS,
    block_attention_metal,
    block_attention_reference,
)
from .choice import Example, Kernels, Op, Run

ATTENTION = Op(
    "block_attention",
    block_attention_reference,
    block_attention_metal,
    THREADS,
    rules.attention,
)


def attend(
    kernels: Kernels,
    keys: mx.array,
    rows: int,
    heads: int,
    *,
    window: int | None = None,
    ahead: bool = False,
    sinks: bool = False,
) -> Run | None:
    """What computes attention of `rows` rows to such keys; None for MLX.

    Args:
        keys: [1, kv_heads, slots, head_dim], of which only shape and type matter.
        heads: of the queries.
        window: how many positions a row sees, itself included.
        ahead: whether a row sees those behind it.
        sinks: whether there are attention sinks.

    Returns:
        `block_attention` without `scale` and `sinks`.
    """
    _, kv_heads, slots, dim = keys.shape
    if rows > MOST_ROWS or dim not in HEAD_SIZES or keys.dtype not in FLOATS:
        return None
    group = heads // kv_heads
    run = kernels.pick(
        ATTENTION,
        (keys.dtype, dim, window, ahead, sinks, rows * group),
        partial(example, rows, group, dim, keys.dtype, window or 0, ahead, sinks),
        rows=rows,
        group=group,
        slots=slots,
    )
    return run and partial(run, window=window or 0, ahead=ahead)


def example(
    rows: int, group: int, dim: int, dtype: mx.Dtype, window: int, ahead: bool, sinks: bool
) -> Example:
    """One KV head and a context that ends in the second chunk."""
    keys = mx.random.split(mx.random.key(0), 3)
    q = mx.random.normal((1, group, rows, dim), key=keys[0]).astype(dtype)
    k, v = (mx.random.normal((1, 1, 2 * CHUNK, dim), key=key).astype(dtype) for key in keys[1:])
    options = {"scale": dim**-0.5, "window": window, "ahead": ahead}
    if sinks:
        options["sinks"] = mx.zeros(group, dtype)
    return Example((q, k, v, mx.array([CHUNK + 1], mx.int32)), options)
