"""The language model head, which can return its largest logits without the others."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial

import mlx.core as mx

from . import rules
from .choice import Example, Op
from .head_topk import MAX_KEEP, TopK, head_topk_metal, head_topk_reference
from .linear import EXAMPLE_ROWS, FewRows, Weight
from .quantized_matmul_small import DTYPES, MAX_ROWS, THREADS, PackedWeight

HEAD = Op("head_topk", head_topk_reference, head_topk_metal, THREADS, rules.head)


class Head(FewRows):
    """Stands for the head; see `FewRows`."""

    def best(self, x: mx.array, count: int, limit: int | None = None) -> TopK | None:
        """The largest logits of each row; None where no kernel pays.

        Args:
            x: [M, K].
            count: how many.
            limit: only the first so many rows of the weight stand for tokens; all if None.
        """
        weight, rows = self._weight, x.shape[0]
        packed = isinstance(weight, PackedWeight)
        if self._bias is not None or rows > MAX_ROWS or count > MAX_KEEP or x.dtype not in DTYPES:
            return None
        if isinstance(weight, mx.array) and weight.dtype != x.dtype:
            return None
        run = self._kernels.pick(
            HEAD,
            (x.dtype, count, rows <= 8, *_kind(weight)),
            partial(example, rows, x.dtype, weight, count),
            rows=rows,
            count=count,
            packed=packed,
        )
        found: TopK | None = run and run(x, weight, count, limit)
        return found


def example(rows: int, dtype: mx.Dtype, weight: Weight, count: int) -> Example:
    """Some rows of x and the first rows of the weight."""
    x = mx.random.normal((rows, weight.shape[1]), key=mx.random.key(0)).astype(dtype)
    first = EXAMPLE_ROWS
    few = weight.first(first) if isinstance(weight, PackedWeight) else weight[:first]
    return Example((x, few, min(count, few.shape[0])))


def _kind(weight: Weight) -> tuple[Hashable, ...]:
    if isinstance(weight, PackedWeight):
        return (weight.scales.dtype, weight.group_size, weight.bits)
    return (weight.dtype,)
