"""Which kernels decoding would use on this machine, each tried once on a small example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from . import attend, experts, head, linear, recurrence, selector
from .choice import Example, Kernels, Op
from .quantized_matmul_small import PackedWeight

DTYPE = mx.bfloat16
WIDTHS = range(1, 17)


def overview(kernels: Kernels) -> dict[str, str]:
    """Per kernel, for how many rows it is chosen, or why it is not.

    Builds every kernel that is chosen for anything. Empty where none may run.
    """
    if kernels.chip is None or not kernels.active:
        return {}
    return {op.name: _state(kernels, op, make, call) for op, make, call in _known()}


def _state(kernels: Kernels, op: Op, make: Callable[[], Example], call: dict[str, Any]) -> str:
    chip = kernels.chip
    assert chip is not None
    chosen = [r for r in WIDTHS if kernels.mode == "on" or op.pays(chip, rows=r, **call)]
    if not chosen:
        return "not for this chip"
    if kernels.pick(op, "example", make, rows=chosen[-1], **call) is None:
        return kernels.refused.get(op.name, "refused")
    return f"{chosen[0]} to {chosen[-1]} rows"


def _known() -> list[tuple[Op, Callable[[], Example], dict[str, Any]]]:
    """Every kernel with an example and what else its rule goes by, as in common models."""
    return [
        (linear.QUANTISED, lambda: linear.example(8, DTYPE, _packed(64), None), {}),
        (linear.SCALAR, lambda: linear.scalar_example(4, DTYPE, _packed(64), None), {}),
        (linear.DENSE, lambda: linear.example(16, DTYPE, _dense(64), None), {}),
        (
            head.HEAD,
            lambda: head.example(15, DTYPE, _packed(64), 16),
            {"count": 16, "packed": True},
        ),
        (experts.GATHERED, lambda: experts.example(8, DTYPE, _packed(4, 64), None, 8), {}),
        (
            attend.ATTENTION,
            lambda: attend.example(16, 4, 128, DTYPE, 0, False, False),
            {"group": 4, "slots": 4096},
        ),
        (recurrence.ROUND, lambda: recurrence.example(DTYPE, 128, 128, 2), {}),
        (selector.CONV, lambda: selector.rows_example(DTYPE, 2, 16, _dense(2, 2)), {}),
        (selector.PATH, lambda: selector.scores_example(15, 8, True), {}),
    ]


def _dense(*lead: int) -> mx.array:
    return mx.random.normal((*lead, 64), key=mx.random.key(1)).astype(DTYPE)


def _packed(*lead: int) -> PackedWeight:
    return PackedWeight(*mx.quantize(_dense(*lead), 64, 4), 64, 4)
