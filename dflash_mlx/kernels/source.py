"""Kernels from the sources in `metal/`.

A source file begins with a comment that states its contract. What stands before the line
`//! body` is the header, helper functions for all instances; what stands behind it is the body of
the kernel function, for which MLX writes the signature. A line `//! use <name>` of a header stands
for the text of `metal/<name>.metal`, helper functions that several kernels share.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import mlx.core as mx

BODY = "//! body\n"
USE = re.compile(r"^//! use (\w+)\n", re.MULTILINE)


@cache
def read(op: str) -> tuple[str, str]:
    """Header and body of `metal/<op>.metal`."""
    header, mark, body = _text(op).partition(BODY)
    assert mark, f"metal/{op}.metal has no line {BODY!r}"
    return USE.sub(lambda use: _shared(use[1]), header), body


def kernel(op: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Callable[..., Any]:
    """The kernel of `metal/<op>.metal`, called like what `mx.fast.metal_kernel` returns."""
    return _build(mx.fast.metal_kernel, op, inputs, outputs)


def _text(name: str) -> str:
    return files("dflash_mlx.metal").joinpath(f"{name}.metal").read_text()


def _shared(name: str) -> str:
    """The text of a file without a body, and of those that it uses."""
    text = _text(name)
    assert BODY not in text, f"metal/{name}.metal has a body and is no helper of others"
    return USE.sub(lambda use: _shared(use[1]), text)


@cache
def _build(
    make: Callable[..., Any], op: str, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> Callable[..., Any]:
    header, body = read(op)
    built: Callable[..., Any] = make(
        name=op, input_names=list(inputs), output_names=list(outputs), source=body, header=header
    )
    return built
