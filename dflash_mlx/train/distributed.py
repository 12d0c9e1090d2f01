"""Several processes that train one draft, each on its share of every step's packs.

All of them draw the same plan from the same seeds, so that each knows which packs are its own and
by how much the loss of the whole step is divided; what they exchange is the sum of gradients and
measures. `mlx.launch` starts them.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import mlx.core as mx
from mlx.utils import tree_map

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
        """The sum over all processes of every array in a tree."""
        if self.size == 1:
            return tree
        return cast(T, tree_map(lambda a: mx.distributed.all_sum(a, group=self._group), tree))

    def agree(self, value: float) -> float:
        """The value of the leading process; waits until it has one."""
        given: Any = self.sum(mx.array(value if self.leads else 0.0))
        return float(given.item())
