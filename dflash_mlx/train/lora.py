"""Training less than all of a draft: `fc` alone, or small additions to its layers (LoRA).

Meant for a draft that is good already and whose target was quantised or fine-tuned: few texts
suffice, and what the draft knows is not unlearnt (arXiv 2106.09685).
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from ..drafts.dflash import DFlashDraft
from .arrays import flat

ADDITIONS = ("down", "up")


class LoRALinear(nn.Module):
    """A frozen linear layer plus a product of two thin matrices, which starts as zero."""

    def __init__(self, linear: nn.Linear, rank: int, key: mx.array) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.linear = linear
        self.down = mx.random.normal((rank, inputs), scale=1 / math.sqrt(inputs), key=key)
        self.up = mx.zeros((outputs, rank))

    def __call__(self, x: mx.array) -> mx.array:
        behind: mx.array = self.linear(x) + (x @ self.down.T) @ self.up.T
        return behind

    @property
    def weight(self) -> mx.array:
        """The matrix that does the same."""
        both: mx.array = self.linear.weight + self.up @ self.down
        return both


def limit(draft: DFlashDraft, train: str, rank: int, seed: int) -> None:
    """Leave only what is asked for trainable.

    Args:
        train: "all", "fc" or "lora", which trains `fc` as well.
        rank: of LoRA's matrices.
    """
    if train == "all":
        return
    draft.freeze()
    draft.fc.unfreeze()
    if train == "lora":
        key = mx.random.key(seed)
        for layer in draft.layers:
            for part in (layer.self_attn, layer.mlp):
                key, now = mx.random.split(key)
                _add(part, rank, now)


def merged(draft: DFlashDraft) -> dict[str, mx.array]:
    """The parameters by their published names, with what LoRA added."""
    parameters: dict[str, mx.array] = flat(draft.parameters())
    for path, module in draft.named_modules():
        if isinstance(module, LoRALinear):
            for name in ADDITIONS:
                del parameters[f"{path}.{name}"]
            for name in module.linear:
                parameters[f"{path}.{name}"] = parameters.pop(f"{path}.linear.{name}")
            parameters[f"{path}.weight"] = module.weight
    return parameters


def _add(part: nn.Module, rank: int, key: mx.array) -> None:
    linears = {name: m for name, m in part.children().items() if isinstance(m, nn.Linear)}
    keys = mx.random.split(key, len(linears))
    for (name, linear), own in zip(linears.items(), keys, strict=True):
        part[name] = LoRALinear(linear, rank, own)
        part[name].linear.freeze()
