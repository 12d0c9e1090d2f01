"""What runs DFlash 2's own parts: the kernels, or their definitions in plain MLX."""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from . import rules
from .candidate_path import THREADS as PATH_THREADS
from .candidate_path import candidate_path_metal, candidate_path_reference
from .choice import Example, Kernels, Op, Run
from .dynamic_causal_conv import THREADS as CONV_THREADS
from .dynamic_causal_conv import dynamic_causal_conv_metal, dynamic_causal_conv_reference

CONV = Op(
    "dynamic_causal_conv",
    dynamic_causal_conv_reference,
    dynamic_causal_conv_metal,
    CONV_THREADS,
    rules.always,
)
PATH = Op(
    "candidate_path",
    candidate_path_reference,
    candidate_path_metal,
    PATH_THREADS,
    rules.always,
)


def convolution(kernels: Kernels, rows: mx.array, base: mx.array, group: int) -> Run:
    """What computes `dynamic_causal_conv` of such rows, in groups of so many channels."""
    example = partial(rows_example, rows.dtype, base.shape[1], group, base)
    run = kernels.pick(CONV, (rows.dtype, base.dtype, group), example, rows=rows.shape[1])
    return run or dynamic_causal_conv_reference


def path(kernels: Kernels, scores: mx.array, sampled: bool) -> Run:
    """What computes `candidate_path` for scores of that shape."""
    places, count, _ = scores.shape
    example = partial(scores_example, places, count, sampled)
    run = kernels.pick(PATH, (places, count, sampled), example, rows=places)
    return run or candidate_path_reference


def rows_example(dtype: mx.Dtype, reach: int, group: int, base: mx.array) -> Example:
    """Four rows through the second convolution."""
    keys = mx.random.split(mx.random.key(0), 3)
    size = base.shape[2]
    rows, residual = (mx.random.normal((1, 4, size), key=key).astype(dtype) for key in keys[:2])
    dynamic = mx.random.normal((4, 2 * reach * size // group), key=keys[2]).astype(dtype)
    return Example((rows, base, dynamic, 1, residual))


def scores_example(places: int, count: int, sampled: bool) -> Example:
    keys = mx.random.split(mx.random.key(0), 2)
    scores = mx.random.normal((places, count, count), key=keys[0])
    ids = mx.arange(places * count, dtype=mx.int32).reshape(places, count)
    noise = mx.random.gumbel((places, count), key=keys[1]) if sampled else None
    return Example((scores, ids, noise))
