"""What runs a round of a gated delta layer: the kernel, or its caller's own way."""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from . import rules
from .choice import Example, Kernels, Op, Run
from .gated_delta_round import (
    THREADS,
    Rows,
    gated_delta_round_metal,
    gated_delta_round_reference,
)

ROUND = Op(
    "gated_delta_round",
    gated_delta_round_reference,
    gated_delta_round_metal,
    THREADS,
    rules.always,
)


def recurrence(
    kernels: Kernels, rows: int, dtype: mx.Dtype, heads: int, key_heads: int, dk: int, dv: int
) -> Run | None:
    """What computes `gated_delta_round` of a block; None for MLX.

    Args:
        rows: of the block.
        dtype: of its queries.
        heads, key_heads: of the layer.
        dk, dv: sizes of a head's key and value.
    """
    group = heads // key_heads
    small = partial(example, dtype, dk, dv, group)
    return kernels.pick(ROUND, (dtype, dk, dv, group), small, rows=rows)


def example(dtype: mx.Dtype, dk: int, dv: int, group: int) -> Example:
    """One key head, three old rows of which two were kept, two new ones."""
    keys = iter(mx.random.split(mx.random.key(0), 8))

    def rows(count: int) -> Rows:
        k = mx.random.normal((1, count, 1, dk), key=next(keys)) * dk**-0.5
        v = mx.random.normal((1, count, group, dv), key=next(keys))
        g, beta = (mx.random.uniform(0.5, 1, (1, count, group), key=next(keys)) for _ in range(2))
        return Rows(k.astype(dtype), v.astype(dtype), g, beta.astype(dtype))

    state = mx.zeros((1, group, dv, dk))
    old, block = rows(3), rows(2)
    q = block.k
    arguments = (state, old, mx.array([2], mx.int32), q, block)
    return Example(arguments, {"with_behind": False})
