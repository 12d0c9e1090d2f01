"""Which Apple GPU this is, as far as the choice of kernels goes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class Chip:
    """An Apple GPU.

    Attributes:
        generation: 13 for M1, 14 for M2, 15 for M3, 16 for M4, 17 for M5.
        size: the letter behind it: p for a phone's, g for the plain chip and the Pro, s for the
            Max, d for the Ultra.
    """

    generation: int
    size: str = "g"

    @classmethod
    def of(cls, architecture: str) -> Chip | None:
        """From Metal's name for it, such as applegpu_g13s; None for any other."""
        match = re.fullmatch(r"applegpu_g(\d+)([a-z]?)", architecture)
        return cls(int(match[1]), match[2] or "g") if match else None


def this_chip() -> Chip | None:
    """The GPU that MLX computes on; None where that is not Metal."""
    if not mx.metal.is_available() or mx.default_device().type != mx.gpu:
        return None
    # A GPU newer or other than all that are known here is taken for the newest.
    return Chip.of(str(mx.device_info().get("architecture", ""))) or Chip(17)
