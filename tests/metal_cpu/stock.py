"""Runs MLX's own kernels, out of the headers of the installed wheel.

They re-validate the emulator at every MLX upgrade, and give the traffic of stock MLX to compare
with.  The way each is dispatched follows MLX's host code (mlx/backend/metal/quantized.cpp and
scaled_dot_product_attention.cpp).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .arrays import Argument, output_argument, span, to_mlx, to_numpy
from .build import mlx_include
from .launch import Options, raise_faults, run, trampoline
from .report import Report
from .signature import ATTRIBUTES

KERNELS = "mlx/backend/metal/kernels"

Value = mx.array | np.ndarray | np.generic


@dataclass(frozen=True)
class StockKernel:
    """A kernel template of MLX: the headers to include, its name and template arguments.

    `constants` sets function constants.
    """

    headers: tuple[str, ...]
    name: str
    template: str
    constants: tuple[tuple[str, int], ...] = ()

    def __call__(
        self,
        values: Mapping[str, Value],
        outputs: Mapping[str, tuple[Sequence[int], mx.Dtype]],
        groups: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        options: Options,
    ) -> tuple[list[mx.array], Report]:
        """Runs on a grid of `groups` threadgroups.

        `values` are inputs by parameter name (float scalars and sizes as numpy values); parameters
        in neither mapping get 64 bytes of zeros.  Returns the outputs and the report.
        """
        arguments: list[Argument] = []
        passed: list[str] = []
        for i, (name, attribute) in enumerate(self._parameters()):
            if attribute in ATTRIBUTES:
                passed.append(f"MTL_ID(F, {i}, {attribute})")
                continue
            passed.append(f"MTL_BUFFER(F, {i}, {len(arguments)})")
            arguments.append(_argument(name, values, outputs))
        include = "".join(f'#include "{KERNELS}/{h}"\n' for h in self.headers)
        setup = " ".join(f"{name} = {value};" for name, value in self.constants)
        text = include + trampoline(f"{self.name}<{self.template}>", passed, setup)
        grid = tuple(a * b for a, b in zip(groups, threadgroup, strict=True))
        report = run(self.name, text, arguments, grid, threadgroup, options)
        raise_faults(report, options)
        made = {a.name: a.data for a in arguments if a.output}
        return [to_mlx(made[n], s, d) for n, (s, d) in outputs.items()], report

    def _parameters(self) -> list[tuple[str, str]]:
        text = "".join((mlx_include() / KERNELS / h).read_text() for h in self.headers)
        return _parameters(text, self.name)


@functools.lru_cache(maxsize=64)
def _parameters(text: str, kernel: str) -> list[tuple[str, str]]:
    """Name and last attribute of each parameter of a kernel: ("w", "buffer(0)")."""
    match = re.search(rf"\bvoid {kernel}\((.*?)\)\s*{{", re.sub(r"//[^\n]*", "", text), re.DOTALL)
    if match is None:
        raise ValueError(f"no kernel {kernel} in MLX's headers")
    found = []
    for part in re.split(r",(?![^\[]*\]\])", match.group(1)):
        name, _, attribute = part.partition("[[")
        found.append((name.split()[-1].lstrip("*&"), attribute.split("]]")[0].strip()))
    return found


def _argument(
    name: str, values: Mapping[str, Value], outputs: Mapping[str, tuple[Sequence[int], mx.Dtype]]
) -> Argument:
    if name in outputs:
        shape, dtype = outputs[name]
        return output_argument(name, shape, dtype, None)
    value = values.get(name, np.zeros(16, np.uint32))
    view = to_numpy(value, True) if isinstance(value, mx.array) else np.atleast_1d(value)
    return Argument(name, span(view), view.dtype.itemsize)


def int32(x: int) -> np.generic:
    return np.int32(x)
