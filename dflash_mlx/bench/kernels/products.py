"""Products with weights: quantised, of experts, dense."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...kernels.gather_quantized_matmul_small import gather_quantized_matmul_small_reference
from ...kernels.quantized_matmul_small import PackedWeight
from .cases import (
    Call,
    Case,
    Inputs,
    Kind,
    Make,
    Sizes,
    bytes_of,
    normal,
    packed,
    size,
    times,
    widened,
)

# From here on mlx-lm sorts pairs of row and expert (`mlx_lm.models.switch_layers`).
SORTED_PAIRS = 64


def open_quantised(sizes: Sizes, kind: Kind) -> Make:
    """n, k, group; fused: 1 for gate and up with SwiGLU."""
    n, k, group, fused = (sizes[name] for name in ("n", "k", "group", "fused"))
    assert kind.bits is not None
    bits, one = kind.bits, n * k * kind.bits // 8

    def weight() -> tuple[PackedWeight, ...]:
        return tuple(
            packed(n, k, bits=bits, group=group, dtype=kind.dtype) for _ in range(1 + fused)
        )

    weights = times(kind.sets(one * (1 + fused)), weight)

    def case(rows: int) -> Case:
        sets = [(normal(rows, k, dtype=kind.dtype), *w) for w in weights]
        moved = size(sets[0]) + bytes_of(rows, n, dtype=kind.dtype)
        flops = 2 * rows * n * k * (1 + fused)
        return Case(sets, {"quantized_matmul": _swiglu if fused else _stock}, moved, flops)

    return case


def _stock(x: mx.array, weight: PackedWeight) -> mx.array:
    w, scales, biases, group, bits = weight
    return mx.quantized_matmul(x, w, scales, biases, True, group, bits)


def _swiglu(x: mx.array, weight: PackedWeight, up: PackedWeight) -> mx.array:
    return _activate(_stock(x, weight), _stock(x, up))


@mx.compile
def _activate(gate: mx.array, up: mx.array) -> mx.array:
    y: mx.array = nn.silu(gate) * up
    return y


def open_experts(sizes: Sizes, kind: Kind) -> Make:
    """experts, chosen, n, k, group; fused: 1 for gate and up, 0 for down (a row per pair)."""
    experts, chosen, n, k, group, fused = (
        sizes[name] for name in ("experts", "chosen", "n", "k", "group", "fused")
    )
    assert kind.bits is not None
    bits, each = kind.bits, n * k * kind.bits // 8 * (1 + fused)

    def weight() -> tuple[PackedWeight, ...]:
        return tuple(
            packed(experts, n, k, bits=bits, group=group, dtype=kind.dtype)
            for _ in range(1 + fused)
        )

    weights = times(kind.sets(experts * each), weight)
    expert_bytes = size(weights[0]) // experts

    def case(rows: int) -> Case:
        shape = (rows, k) if fused else (rows, chosen, k)
        sets: list[Any] = []
        # Few rows touch a small part of the weights: other experts each time.
        for i in range(max(len(weights), kind.sets(rows * chosen * each))):
            first, *more = weights[i % len(weights)]
            x = normal(*shape, dtype=kind.dtype)
            sets.append((x, first, _choices(rows, chosen, experts), *more))
        used = sum(len(_used(s[2])) for s in sets) / len(sets)
        moved = size(sets[0][0]) + bytes_of(rows, chosen, n, dtype=kind.dtype)
        flops = 2 * rows * chosen * n * k * (1 + fused)
        stock: dict[str, Call] = {"gather_qmm": _gathered}
        if rows * chosen >= SORTED_PAIRS:
            stock["gather_qmm, sorted"] = _gathered_in_order
        hints = [_order(s[2]) for s in sets]
        moved += round(used * expert_bytes)
        truth = partial(_of_used_experts, *sets[0])
        return Case(sets, stock, moved, flops, hints=hints, truth=truth)

    return case


def _choices(rows: int, chosen: int, experts: int) -> mx.array:
    """Different experts for each row, all equally likely: uint32 [rows, chosen]."""
    order = mx.argsort(mx.random.uniform(shape=(rows, experts)), axis=-1)
    return order[:, :chosen].astype(mx.uint32)


def _used(indices: mx.array) -> list[int]:
    flat: Any = indices.reshape(-1).tolist()
    return sorted(set(flat))


def _of_used_experts(
    x: mx.array, weight: PackedWeight, indices: mx.array, *up: PackedWeight
) -> mx.array:
    """The reference's result, with weights of the chosen experts alone."""
    used = mx.array(_used(indices))
    places = (indices[..., None] == used).argmax(-1).astype(mx.uint32)
    first, *second = (
        PackedWeight(w.w[used], w.scales[used], w.biases[used], w.group_size, w.bits)
        for w in (weight, *up)
    )
    return gather_quantized_matmul_small_reference(*widened((x, first, places, *second)))


def _order(indices: mx.array) -> Inputs:
    """Where each pair, sorted by expert, stood before, and where it stands behind that."""
    order = mx.argsort(indices.reshape(-1))
    return order, mx.argsort(order)


def _gathered(x: mx.array, weight: PackedWeight, indices: mx.array, *rest: Any) -> mx.array:
    """As mlx-lm's expert layers: [M, S, N]."""
    wide = x[:, :, None] if x.ndim == 3 else x[:, None, None]
    return _both(wide, weight, rest[:-2], indices, False)[:, :, 0]


def _gathered_in_order(
    x: mx.array, weight: PackedWeight, indices: mx.array, *rest: Any
) -> mx.array:
    """The same by pairs sorted by expert, as mlx-lm does for many pairs, and back in place."""
    *up, order, back = rest
    flat = x.reshape(-1, 1, x.shape[-1])
    flat = flat[order // (indices.size // flat.shape[0])]
    y = _both(flat, weight, up, indices.reshape(-1)[order], True)
    return y[back].reshape(*indices.shape, -1)


def _both(
    x: mx.array, weight: PackedWeight, up: Sequence[PackedWeight], indices: mx.array, ordered: bool
) -> mx.array:
    """One product, or two with SwiGLU."""
    first, *second = (
        mx.gather_qmm(
            x,
            w.w,
            w.scales,
            w.biases,
            rhs_indices=indices,
            transpose=True,
            group_size=w.group_size,
            bits=w.bits,
            sorted_indices=ordered,
        )
        for w in (weight, *up)
    )
    return _activate(first, *second) if second else first


def open_dense(sizes: Sizes, kind: Kind) -> Make:
    """n, k."""
    n, k = sizes["n"], sizes["k"]
    count = kind.sets(bytes_of(n, k, dtype=kind.dtype))
    weights = times(count, lambda: normal(n, k, dtype=kind.dtype, scale=k**-0.5))

    def case(rows: int) -> Case:
        sets = [(normal(rows, k, dtype=kind.dtype), w) for w in weights]
        moved = size(sets[0]) + bytes_of(rows, n, dtype=kind.dtype)
        return Case(sets, {"matmul": lambda x, w: x @ w.T}, moved, 2 * rows * n * k)

    return case
