"""The head of a few rows: a product with the largest of all weights, and the best logits."""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx

from ...kernels.head_topk import TopK, head_topk_reference
from ...kernels.quantized_matmul_small import PackedWeight
from .cases import Call, Case, Inputs, Kind, Make, Sizes, bytes_of, normal, packed, size, times

Weight = PackedWeight | mx.array
PART = 16384  # rows of the head whose float32 form is in memory at a time


def open_head(sizes: Sizes, kind: Kind) -> Make:
    """n, k, group; keep: how many tokens. Dense where there are no bits."""
    n, k, group, keep = (sizes[name] for name in ("n", "k", "group", "keep"))

    def weight() -> Weight:
        if kind.bits is None:
            return normal(n, k, dtype=kind.dtype, scale=k**-0.5)
        return packed(n, k, bits=kind.bits, group=group, dtype=kind.dtype)

    weights = times(kind.sets(n * k * (kind.bits or 8 * kind.dtype.size) // 8), weight)

    def case(rows: int) -> Case:
        sets = [(normal(rows, k, dtype=kind.dtype), w) for w in weights]
        moved = size(sets[0]) + bytes_of(rows, 2 * keep + 1, dtype=mx.float32)
        return Case(
            sets,
            _stock(kind, keep),
            moved,
            2 * rows * n * k,
            options={"k": keep},
            truth=partial(_in_parts, sets[0], keep),
            view=partial(_by_logit, sets[0]),
        )

    return case


def _stock(kind: Kind, keep: int) -> dict[str, Call]:
    """All logits, and the best of them in no order: what sampling sums up is left out."""

    def run(x: mx.array, weight: Weight) -> tuple[mx.array, mx.array]:
        if isinstance(weight, PackedWeight):
            w, scales, biases, group, bits = weight
            logits = mx.quantized_matmul(x, w, scales, biases, True, group, bits)
        else:
            logits = x @ weight.T
        if keep == 1:
            ids = mx.argmax(logits, axis=-1, keepdims=True)
        else:
            ids = mx.argpartition(logits, -keep, axis=-1)[:, -keep:]
        return ids, mx.take_along_axis(logits, ids, axis=-1)

    product = "quantized_matmul" if kind.bits else "matmul"
    return {f"{product}, {'argmax' if keep == 1 else 'argpartition'}": run}


def _in_parts(inputs: Inputs, keep: int) -> TopK:
    """The reference's result, part by part of the vocabulary."""
    x, weight = inputs
    wide, n = x.astype(mx.float32), weight.shape[0]
    found = []
    for start in range(0, n, PART):
        part = _rows(weight, slice(start, start + PART))
        best = head_topk_reference(wide, part, min(keep, part.shape[0]))
        found.append(best._replace(ids=best.ids + start))
        mx.eval(found[-1])
    values = mx.concatenate([best.values for best in found], axis=-1)
    ids = mx.concatenate([best.ids for best in found], axis=-1)
    order = mx.argsort(-values, axis=-1)[:, :keep]
    return TopK(
        mx.take_along_axis(ids, order, axis=-1),
        mx.take_along_axis(values, order, axis=-1),
        mx.logsumexp(mx.stack([best.lse for best in found]), axis=0),
    )


def _by_logit(inputs: Inputs, found: Any) -> Inputs:
    """A result in a form in which equally good ones are equal.

    Of two logits that differ by rounding either may come first, so ids are replaced by their exact
    logits. Both these and the values go from the largest down.
    """
    x, weight = inputs
    ids, values, *more = found
    with mx.stream(mx.cpu):
        chosen = _rows(weight, ids.reshape(-1))
        wide = chosen.dequantised() if isinstance(chosen, PackedWeight) else chosen
        wide = wide.astype(mx.float32).reshape(*ids.shape, -1)
        exact = (x.astype(mx.float32)[:, None] * wide).sum(axis=-1)
        best = (mx.sort(-a, axis=-1) * -1 for a in (exact, values))
        return (*best, *more)


def _rows(weight: Weight, which: slice | mx.array) -> Weight:
    if isinstance(weight, PackedWeight):
        w, scales, biases, group, bits = weight
        return PackedWeight(w[which], scales[which], biases[which], group, bits)
    return weight[which]
