"""What a case of `dflash-mlx bench kernels` is, and what its makers share.

A kernel has one `Entry` in `table.py`. Its sizes are those of real models, its weights are made
once per size and used at every width. A weight is there several times and calls take turns, so
that it comes from memory as in a decode step, not from the system's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from ...kernels.quantized_matmul_small import PackedWeight

MOST_SETS = 64
MAX_ROWS = 64
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}

Inputs = tuple[Any, ...]
Call = Callable[..., Any]
Wait = Callable[[mx.array], mx.array]


def first(inputs: Inputs, wait: Wait) -> Inputs:
    """The inputs with the first one waiting, where that is a small array."""
    return wait(inputs[0]), *inputs[1:]


def same(result: Any) -> Any:
    """A result as it is."""
    return result


@dataclass(frozen=True)
class Kind:
    """What all weights and inputs of a case are.

    Attributes:
        bits: of quantised weights; None for ops without.
        rotation: bytes that calls go through before they come back to the same memory.
    """

    dtype: mx.Dtype
    bits: int | None
    rotation: int

    def sets(self, touched: int) -> int:
        """How many sets of inputs make a rotation, if a call touches so many bytes."""
        return min(MOST_SETS, max(1, -(-self.rotation // touched)))


@dataclass(frozen=True)
class Case:
    """One operation at one width.

    Attributes:
        sets: positional arguments of the kernel and its reference, one tuple for each call in turn.
        stock: by name, what of MLX is timed beside it; takes the same positional arguments. The
            fastest counts.
        hints: per set, further arguments of `stock`: what a model works out once for several
            operations.
        bytes: of weights, caches, inputs and outputs, each once.
        flops: useful ones.
        options: keyword arguments of the kernel and its reference.
        truth: computes what the reference gives for the first of `sets`, with float32 for 16-bit
            floats; where the reference itself would take too much memory.
        view: makes results comparable, where several are right.
        tie: makes an argument wait for the call before; a small one that is needed at once.
    """

    sets: Sequence[Inputs]
    stock: Mapping[str, Call]
    bytes: int
    flops: int
    options: Mapping[str, Any] = field(default_factory=dict)
    hints: Sequence[Inputs] = ()
    truth: Callable[[], Any] | None = None
    view: Callable[[Any], Any] = same
    tie: Callable[[Inputs, Wait], Inputs] = first

    def hint(self, index: int) -> Inputs:
        """What of `hints` belongs to a set."""
        return self.hints[index] if self.hints else ()


Sizes = Mapping[str, int]
Make = Callable[[int], Case]  # of the width


@dataclass(frozen=True)
class Entry:
    """A kernel to time.

    Attributes:
        beside: what stands for MLX, in words.
        kernel: takes the arguments of `reference` and `threads`.
        threads: its ladder of threadgroup sizes, in the order to try them.
        sizes: by label, those of real models.
        small: the same for a quick look.
        open: makes the weights of one of `sizes`, and returns what makes a case of a width.
        bits: of weights, where they are quantised.
        dtype: where it takes one type alone.
        least, most: the widths that it is for.
    """

    name: str
    beside: str
    reference: Call
    kernel: Call
    threads: tuple[int, ...]
    sizes: Mapping[str, Sizes]
    small: Mapping[str, Sizes]
    open: Callable[[Sizes, Kind], Make]
    bits: tuple[int, ...] = ()
    dtype: str | None = None
    least: int = 1
    most: int = MAX_ROWS


def normal(*shape: int, dtype: mx.Dtype = mx.float32, scale: float = 1.0) -> mx.array:
    """Random numbers around 0."""
    return (mx.random.normal(shape) * scale).astype(dtype)


def packed(*shape: int, bits: int, group: int, dtype: mx.Dtype) -> PackedWeight:
    """A random quantised weight [..., N, K], whose products with normal rows are around 1."""
    *outer, k = shape
    # Not from the whole range at once: random integers have 24 random bits.
    w = mx.random.randint(0, 256, (*outer, k * bits // 8), mx.uint8).view(mx.uint32)
    step = k**-0.5 * 2.0 ** (2 - bits)
    scales = mx.random.uniform(0.5 * step, 1.5 * step, (*outer, k // group))
    biases = scales * -(2 ** (bits - 1))
    return PackedWeight(w, scales.astype(dtype), biases.astype(dtype), group, bits)


def times(count: int, make: Callable[[], Any]) -> list[Any]:
    """So many values, each computed."""
    made = [make() for _ in range(count)]
    mx.eval(made)
    return made


def size(tree: Any) -> int:
    """Bytes of all arrays in a tree of tuples."""
    return sum(array.nbytes for array in arrays(tree))


def bytes_of(*shape: int, dtype: mx.Dtype) -> int:
    """Of an array."""
    return int(prod(shape)) * dtype.size


def arrays(tree: Any) -> list[mx.array]:
    """All arrays in a tree of tuples, in order."""
    named: Any = tree_flatten(tree)
    return [leaf for _, leaf in named if isinstance(leaf, mx.array)]


def widened(tree: Any) -> Any:
    """The same tree with 16-bit floats as float32, which keep their values."""

    def wide(leaf: Any) -> Any:
        short = isinstance(leaf, mx.array) and leaf.dtype in (mx.float16, mx.bfloat16)
        return leaf.astype(mx.float32) if short else leaf

    return tree_map(wide, tree)
