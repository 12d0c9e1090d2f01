"""A round of a gated delta layer in one dispatch: replay of the kept rows, then the new block.

`gated_delta.py` replays by mlx-lm's own code, once per layer and round, and runs the block by it
again: the state is read and written twice. The kernel wants what mlx-lm computes on the way to
its recurrence, so that part of the layer is written out here; the tests compare it with mlx-lm's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.gated_delta import compute_g, normalize_qk

from ..kernels.choice import Run
from ..kernels.gated_delta_round import Rows
from ..kv import Scalar
from ..recurrent import Past

EPS = 1e-6


@dataclass(frozen=True)
class Projected:
    """Input projections of some rows.

    Attributes:
        qkv: what the convolution takes, [1, L, conv_dim].
        z: the output's gate, [1, L, Hv, Dv].
        b, a: [1, L, Hv].
    """

    qkv: mx.array
    z: mx.array
    b: mx.array
    a: mx.array


def run_round(
    net: Any, run: Run, past: Past, old: Projected | None, kept: Scalar, new: Projected
) -> tuple[mx.array, Past]:
    """The layer's output of a block [1, L, hidden_size], and its state before the block.

    Args:
        net: mlx-lm's module.
        run: what `kernels.recurrence.recurrence` returned.
        past: the state before the rows of the last round.
        old: those rows; None where there are none to replay.
        kept: how many of them count.
        new: the block.
    """
    conv, state = past
    assert conv is not None and state is not None
    if old is None:
        replayed, kept = _nothing(net, new), 0
    else:
        mixed, conv = _convolve(net, conv, old.qkv, kept)
        replayed = _rows(net, mixed, old)[1]
    mixed, _ = _convolve(net, conv, new.qkv, 0)
    q, block = _rows(net, mixed, new)
    count = mx.array([kept], mx.int32) if isinstance(kept, int) else kept[None]
    done = run(state, replayed, count, q, block, with_behind=False)
    out = net.norm(done.y, new.z)
    hidden: mx.array = net.out_proj(out.reshape(*out.shape[:2], -1))
    return hidden, [conv, done.committed]


def _convolve(net: Any, before: mx.array, qkv: mx.array, kept: Scalar) -> tuple[mx.array, mx.array]:
    """Convolved rows, and the convolution's inputs that stand before row `kept`."""
    inputs = mx.concatenate([before, qkv], axis=1)
    size = net.conv_kernel_size - 1
    if isinstance(kept, int):
        last = mx.contiguous(inputs[:, kept : kept + size])
    else:
        last = mx.take(inputs, kept + mx.arange(size), axis=1)
    return nn.silu(net.conv1d(inputs)), last


def _rows(net: Any, mixed: mx.array, projected: Projected) -> tuple[mx.array, Rows]:
    """Scaled queries and what else the recurrence takes."""
    q, k, v = mx.split(mixed, [net.key_dim, 2 * net.key_dim], axis=-1)
    shape = mixed.shape[:2]
    q = q.reshape(*shape, net.num_k_heads, net.head_k_dim)
    k = k.reshape(*shape, net.num_k_heads, net.head_k_dim)
    v = v.reshape(*shape, net.num_v_heads, net.head_v_dim)
    q, k = normalize_qk(q, k, inv_scale=net.head_k_dim**-0.5, eps=EPS)
    g = compute_g(net.A_log, projected.a, net.dt_bias)
    return q, Rows(k, v, g, mx.sigmoid(projected.b))


def _nothing(net: Any, new: Projected) -> Rows:
    """A row that is not replayed."""
    k = mx.zeros((1, 1, net.num_k_heads, net.head_k_dim), new.qkv.dtype)
    v = mx.zeros((1, 1, net.num_v_heads, net.head_v_dim), new.qkv.dtype)
    gate = mx.zeros((1, 1, net.num_v_heads), new.qkv.dtype)
    return Rows(k, v, gate, gate)
