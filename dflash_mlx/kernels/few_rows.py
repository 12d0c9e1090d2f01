"""Modules whose products run by kernels in passes of few rows.

A module becomes a shallow copy, down to its linear parts; what holds weights is shared with the
original, which is left as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .choice import Kernels
from .linear import FewRows, FewRowsSwiGLU, stored
from .quantized_matmul_small import PackedWeight

GATED = ("gate_proj", "up_proj", "down_proj")


def few_rows(
    module: Any, kernels: Kernels, special: Callable[[Any, Kernels], Any] = lambda *_: None
) -> Any:
    """What stands for a module and all below it.

    Args:
        module: of MLX. Those of ours that choose by an attribute `kernels` get another.
        kernels: what to run by.
        special: makes what stands for modules of a kind; None for any other.
    """
    if type(module) in (nn.Linear, nn.QuantizedLinear):
        weight = stored(module)
        return module if weight is None else FewRows(module, weight, kernels)
    stand_in = special(module, kernels)
    if stand_in is not None:
        return stand_in
    copied = copy.copy(module)
    if "kernels" in vars(copied):
        copied.kernels = kernels
    for name, part in module.items():
        if isinstance(part, nn.Module):
            setattr(copied, name, few_rows(part, kernels, special))
        elif isinstance(part, list) and part and isinstance(part[0], nn.Module):
            setattr(copied, name, [few_rows(p, kernels, special) for p in part])
    return _swiglu(module, copied, kernels) or copied


def _swiglu(module: Any, copied: Any, kernels: Kernels) -> FewRowsSwiGLU | None:
    """What stands for a module that is a SwiGLU of quantised layers; None for any other."""
    if not all(type(module.get(name)) is nn.QuantizedLinear for name in GATED):
        return None
    gate, up = stored(module.gate_proj), stored(module.up_proj)
    if not isinstance(gate, PackedWeight) or not isinstance(up, PackedWeight):
        return None
    biased = "bias" in module.gate_proj or "bias" in module.up_proj
    if biased or gate[3:] != up[3:] or not _is_swiglu(module, gate.shape[1]):
        return None
    return FewRowsSwiGLU(copied, gate, up, kernels)


def _is_swiglu(module: Any, size: int) -> bool:
    """Whether a module with three projections does what a SwiGLU does: asked, not guessed."""
    dtype = module.gate_proj["scales"].dtype
    x = mx.random.normal((1, 2, size), key=mx.random.key(0)).astype(dtype)
    wanted = module.down_proj(nn.silu(module.gate_proj(x)) * module.up_proj(x))
    error = mx.abs(module(x) - wanted).max()
    return bool(error <= 0.02 * mx.abs(wanted).max())
