"""Which texts and blocks each step sees, and how fast it learns: a function of the seed alone.

A run that was killed goes on from its last state with the very steps that would have followed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .packing import Document, Pack, choose_anchors, group, pack
from .settings import FitSettings


class Schedule:
    """The steps of a training.

    Args:
        documents: texts to train on, each with a place for a block at least.
        settings: the training's.
        block_size, mask_token: the draft's.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        settings: FitSettings,
        block_size: int,
        mask_token: int,
    ) -> None:
        self._documents = documents
        self._settings = settings
        self._block_size, self._mask_token = block_size, mask_token
        self._groups = [g for epoch in range(settings.epochs) for g in self._epoch(epoch)]
        whole = math.ceil(len(self._groups) / settings.packs)
        self.steps = min(whole, settings.steps or whole)

    def packs(self, step: int) -> list[Pack]:
        """The packs of a step, over all processes."""
        first = step * self._settings.packs
        return [self._pack(*g) for g in self._groups[first : first + self._settings.packs]]

    def random(self, step: int, number: int) -> np.random.Generator:
        """What draws for one pack of a step."""
        return np.random.default_rng([self._settings.seed, 2, step, number])

    def learning_rate(self, step: int) -> float:
        """Linear to its height, then a half cosine down to the floor."""
        settings = self._settings
        rise = max(1, math.ceil(settings.warmup * self.steps))
        if step < rise:
            return settings.learning_rate * (step + 1) / rise
        share = (step - rise) / max(1, self.steps - rise)
        height = settings.floor + (1 - settings.floor) * (1 + math.cos(math.pi * share)) / 2
        return settings.learning_rate * height

    def _epoch(self, epoch: int) -> list[tuple[int, list[int]]]:
        random = np.random.default_rng([self._settings.seed, 0, epoch])
        order = random.permutation(len(self._documents)).tolist()
        lengths = [len(d.ids) for d in self._documents]
        return [(epoch, g) for g in group(lengths, order, self._settings.pack_tokens)]

    def _pack(self, epoch: int, indices: list[int]) -> Pack:
        documents = [self._documents[i] for i in indices]
        anchors = [
            choose_anchors(
                document,
                self._settings.anchors,
                np.random.default_rng([self._settings.seed, 1, epoch, index]),
            )
            for document, index in zip(documents, indices, strict=True)
        ]
        return pack(documents, anchors, self._block_size, self._mask_token)
