"""Several processes that train one draft, each on its share of every step's packs.

All of them draw the same plan from the same seeds, so that each knows which packs are its own and
by how much the loss of the whole step is divided; what they exchange is the sum of gradients and
measures. `mlx.launch` starts them.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, TypeVar, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

T = TypeVar("T")


class Group:
    """The processes; alone unless started by `mlx.launch`."""

    def __init__(self, group: mx.distributed.Group | None = None) -> None:
        self._group = group or mx.distributed.init()

    @property
    def rank(self) -> int:
        """Which one this is, from 0."""
        rank: int = self._group.rank()
        return rank

    @property
    def size(self) -> int:
        """How many they are."""
        size: int = self._group.size()
        return size

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and evaluates."""
        return self.rank == 0

    def sum(self, tree: T) -> T:
        """The sum over all processes of every array in a tree of float32, evaluated."""
        if self.size == 1:
            return tree
        # As one array: a single exchange, in no order that processes could differ in.
        leaves = [a for _, a in cast(list[tuple[str, mx.array]], tree_flatten(tree))]
        joined = mx.concatenate([a.reshape(-1) for a in leaves])
        total = mx.distributed.all_sum(joined, group=self._group)
        mx.eval(total)  # here, or a process that does not use it would keep the others waiting
        ends = list(accumulate(a.size for a in leaves))
        parts = iter(mx.split(total, ends[:-1]))
        return cast(T, tree_map(lambda a: next(parts).reshape(a.shape), tree))

    def agree(self, value: float) -> float:
        """The value of the leading process; waits until it has one."""
        given: Any = self.sum(mx.array(value if self.leads else 0.0))
        return float(given.item())
