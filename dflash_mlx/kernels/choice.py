"""Whether an operation runs by our kernel: the one place that decides.

A kernel runs where it pays by what is known of the chip (`rules.py`), once it has agreed with its
reference on a small example of the same instance. What does not build, is refused by the chip or
disagrees is out for good, with one warning, and MLX's own operation runs instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import mlx.core as mx
from mlx.utils import tree_flatten

from ..errors import UsageError
from .chip import Chip, this_chip

Mode = Literal["auto", "on", "off"]
MODES = ("auto", "on", "off")
Run = Callable[..., Any]
# The reference rounds once; sums of a kernel may differ in order and reach the next value.
TOLERANCE = {mx.float32: 1e-4, mx.float16: 4e-3, mx.bfloat16: 3e-2, mx.int32: 0.0}

log = logging.getLogger("dflash_mlx")


@dataclass(frozen=True)
class Example:
    """Arguments for a small run of a kernel and its reference.

    Attributes:
        geometry: options of the kernel alone, which make it the instance that is asked for.
    """

    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    geometry: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Op:
    """An operation with a kernel.

    Attributes:
        reference: its definition.
        metal: the kernel, with the same arguments and `threads`.
        threads: what to try, from the best to what every chip can launch.
        pays: takes the chip and what `Kernels.pick` is told of the call; whether the kernel should
            be faster than MLX.
    """

    name: str
    reference: Run
    metal: Run
    threads: tuple[int, ...]
    pays: Callable[..., bool]


class Kernels:
    """What one pair runs its operations by.

    Args:
        mode: "auto" takes kernels where they should pay; "on" wherever they can run, and their
            references where there is no Metal; "off" takes none.
        chip: the GPU; None for anything but Metal. By default what MLX computes on.

    Attributes:
        version: grows when kernels go out of use, so that compiled rounds are made anew.

    Raises:
        UsageError: an unknown mode.
    """

    def __init__(self, mode: str = "auto", chip: Chip | Literal["this"] | None = "this") -> None:
        if mode not in MODES:
            raise UsageError(f"kernels is {mode!r}, expected one of {', '.join(MODES)}")
        self.mode = mode
        self.chip = this_chip() if chip == "this" else chip
        self.version = 0
        self._proven: dict[tuple[str, Hashable], Run | None] = {}
        self._refused: dict[str, str] = {}

    @property
    def active(self) -> bool:
        """Whether any operation may run by a kernel or a reference."""
        return self.mode == "on" or (self.mode == "auto" and self.chip is not None)

    @property
    def refused(self) -> dict[str, str]:
        """Kernels that are out of use, with the reason."""
        return dict(self._refused)

    @property
    def proven(self) -> list[str]:
        """Kernels that have run, or their references."""
        return sorted({name for (name, _), run in self._proven.items() if run})

    def pick(
        self, op: Op, kind: Hashable, example: Callable[[], Example], **call: Any
    ) -> Run | None:
        """What to run `op` by; None for MLX's own operation.

        Args:
            op: the operation.
            kind: tells instances of the kernel apart that are compiled apart.
            example: makes small arguments for an instance of that kind.
            call: what `op.pays` goes by.
        """
        if not self.active or op.name in self._refused:
            return None
        if self.chip is None:
            self._proven[op.name, kind] = op.reference
            return op.reference
        if self.mode == "auto" and not op.pays(self.chip, **call):
            return None
        if (op.name, kind) not in self._proven:
            self._proven[op.name, kind] = self._prove(op, example())
        return self._proven[op.name, kind]

    def retire(self, name: str, reason: str) -> None:
        """Put a kernel out of use, with a warning; `name` may be "all"."""
        self.version += 1
        if name == "all":
            self.mode = "off"
        else:
            self._refused[name] = reason
        log.warning("kernel %s is out of use: %s; MLX's own operation runs instead", name, reason)

    def _prove(self, op: Op, small: Example) -> Run | None:
        wanted = op.reference(*small.arguments, **small.options)
        reason = ""
        for threads in op.threads:
            try:
                found = op.metal(
                    *small.arguments, **small.options, **small.geometry, threads=threads
                )
                mx.eval(found)
            except (RuntimeError, ValueError) as error:
                reason = f"refused: {str(error).strip().splitlines()[0]}"
                continue  # perhaps too many threads for this chip
            if not agree(found, wanted):
                reason = "wrong result on a small example"
                break
            return partial(op.metal, threads=threads)
        self.retire(op.name, reason)
        return None


OFF = Kernels("off", None)


def kernels_of(mode: str, processes: int) -> Kernels:
    """What so many processes run a model by; several by MLX alone, so that none differs.

    Raises UsageError for a mode that is unknown, or "on" where there are several.
    """
    if processes > 1 and mode == "on":
        raise UsageError("--kernels on needs a single process; several run without kernels")
    chosen = Kernels(mode)
    return chosen if processes == 1 else OFF


def agree(found: Any, wanted: Any) -> bool:
    """Whether all arrays of a result are those of its reference, but for rounding."""
    pairs = zip(_arrays(found), _arrays(wanted), strict=True)
    return all(_close(a, b) for a, b in pairs)


def _arrays(result: Any) -> list[mx.array]:
    flat = cast(list[tuple[str, Any]], tree_flatten(result))
    return [part for _, part in flat if isinstance(part, mx.array)]


def _close(found: mx.array, wanted: mx.array) -> bool:
    exact, got = wanted.astype(mx.float32), found.astype(mx.float32)
    error = mx.abs(got - exact).max()
    return bool(error <= TOLERANCE[wanted.dtype] * mx.abs(exact).max())
