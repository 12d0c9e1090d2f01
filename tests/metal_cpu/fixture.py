"""pytest: a fixture that makes emulated kernels, and the replacement of `mx.fast.metal_kernel`.

Register it in conftest.py:  pytest_plugins = ["tests.metal_cpu.fixture"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from .build import compiler
from .launch import MetalKernel, Options

# What a kernel should pass: every order, without fused multiply-add, and the checked build.
MATRIX = {
    "asc": Options(),
    "desc": Options(order="desc"),
    "random1": Options(order="random", seed=1),
    "random2": Options(order="random", seed=2),
    "unfused": Options(contract=False),
    "checked": Options(checked=True),
}


class OnMetal(list[MetalKernel]):
    """Stands for the kernels made where Metal itself runs them, and has nothing to report."""

    def _skip(self, *_: Any) -> Any:
        pytest.skip("the kernels ran on Metal, which counts nothing")

    __getitem__ = __iter__ = __len__ = _skip


@pytest.fixture
def metal_cpu() -> type[MetalKernel]:
    """MetalKernel; fails (never skips) where there is no compiler for it."""
    compiler()
    return MetalKernel


@pytest.fixture
def emulate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[MetalKernel]]]:
    """Until the test ends `mx.fast.metal_kernel` makes emulated kernels and Metal is "available".

    Call it with the Options for the kernels, and the `.metal` files their texts come from (to name
    lines); it returns the growing list of kernels made.
    mx.compile is off meanwhile: the emulator needs the values of the inputs.  On a Mac nothing is
    replaced and the kernels run on Metal itself; a test that then looks for their reports is
    skipped from there on.
    """
    if mx.metal.is_available():
        yield lambda options, files=(): OnMetal()
        return
    compiler()
    made: list[MetalKernel] = []

    def install(options: Options, files: Sequence[Path] = ()) -> list[MetalKernel]:
        def metal_kernel(*args: Any, **kwargs: Any) -> MetalKernel:
            made.append(MetalKernel(*args, **kwargs, options=options, files=files))
            return made[-1]

        monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel)
        monkeypatch.setattr(mx.metal, "is_available", lambda: True)
        mx.disable_compile()
        return made

    yield install
    mx.enable_compile()
