"""mlx-lm's mixtures of experts by the kernel."""

from __future__ import annotations

from typing import Any

from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwiGLU, SwitchGLU

from ..kernels.choice import Kernels
from ..kernels.experts import FewRowsExperts
from ..kernels.few_rows import GATED
from ..kernels.linear import stored
from ..kernels.quantized_matmul_small import PackedWeight


def experts(module: Any, kernels: Kernels) -> FewRowsExperts | None:
    """What stands for a layer of quantised SwiGLU experts; None for any other module."""
    if type(module) is not SwitchGLU:
        return None
    parts = [module[name] for name in GATED]
    if type(module.activation) is not SwiGLU:
        return None
    if any(type(part) is not QuantizedSwitchLinear or "bias" in part for part in parts):
        return None
    gate, up, down = (stored(part) for part in parts)
    if not isinstance(gate, PackedWeight) or not isinstance(up, PackedWeight):
        return None
    if not isinstance(down, PackedWeight) or gate[3:] != up[3:]:
        return None
    return FewRowsExperts(module, gate, up, down, kernels)
