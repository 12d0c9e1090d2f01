"""Several linear layers as one product."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from ..kernels.choice import Kernels
from ..kernels.few_rows import few_rows


class Joined:
    """Linear layers of the same input and sizes; those stored in the same way are one product."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        kinds: dict[Hashable, list[int]] = {}
        for place, linear in enumerate(linears):
            kinds.setdefault(_storage(linear), []).append(place)
        self._parts: list[tuple[Any, list[int]]] = [
            (_join([linears[i] for i in p]), p) for p in kinds.values()
        ]

    def with_kernels(self, kernels: Kernels) -> Self:
        """The same product, run by these kernels where they pay."""
        copied = copy.copy(self)
        copied._parts = [(few_rows(linear, kernels), p) for linear, p in self._parts]
        return copied

    def __call__(self, rows: mx.array) -> mx.array:
        """[1, L, in] to [1, L, layers * out], in the order of the layers."""
        if len(self._parts) == 1:
            product: mx.array = self._parts[0][0](rows)
            return product
        outputs: dict[int, mx.array] = {}
        for linear, places in self._parts:
            parts = mx.split(linear(rows), len(places), axis=-1)
            outputs |= zip(places, parts, strict=True)
        return mx.concatenate([outputs[place] for place in sorted(outputs)], axis=-1)


def _storage(linear: nn.Linear) -> Hashable:
    if isinstance(linear, nn.QuantizedLinear):
        return (linear.mode, linear.bits, linear.group_size)
    return "dense"


def _join(linears: Sequence[nn.Linear]) -> nn.Linear:
    joined = copy.copy(linears[0])
    for name in linears[0].parameters():
        tensor = mx.concatenate([linear[name] for linear in linears])
        joined[name] = tensor
        for linear, part in zip(linears, mx.split(tensor, len(linears)), strict=True):
            linear[name] = part
    return joined
