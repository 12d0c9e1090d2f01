"""Kernels from the sources in `metal/`.

A source file begins with a comment that states its contract. What stands before the line
`//! body` is the header, helper functions for all instances; what stands behind it is the body of
the kernel function, for which MLX writes the signature.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import mlx.core as mx

BODY = "//! body\n"


@cache
def read(op: str) -> tuple[str, str]:
    """Header and body of `metal/<op>.metal`."""
    header, mark, body = (
        files("dflash_mlx.metal").joinpath(f"{op}.metal").read_text().partition(BODY)
    )
    assert mark, f"metal/{op}.metal has no line {BODY!r}"
    return header, body


def kernel(op: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Callable[..., Any]:
    """The kernel of `metal/<op>.metal`, called like what `mx.fast.metal_kernel` returns."""
    return _build(mx.fast.metal_kernel, op, inputs, outputs)


@cache
def _build(
    make: Callable[..., Any], op: str, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> Callable[..., Any]:
    header, body = read(op)
    built: Callable[..., Any] = make(
        name=op, input_names=list(inputs), output_names=list(outputs), source=body, header=header
    )
    return built
