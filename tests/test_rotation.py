"""The shared rotary embedding: every bit as MLX's own, once per pass."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from dflash_mlx.batched import Starts
from dflash_mlx.drafts.rope import Rotary
from dflash_mlx.rope import Rope
from dflash_mlx.targets.rotation import Rotation

STARTS: list[Any] = [0, 5, 4095, mx.array(77, mx.int32), [3, 900]]


@pytest.mark.parametrize("start", STARTS, ids=str)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize(("dims", "size", "base"), [(16, 16, 1e4), (8, 16, 1e5), (64, 64, 5e6)])
def test_equals_mlx(dims: int, size: int, base: float, dtype: mx.Dtype, start: Starts) -> None:
    x = mx.random.normal((2, 3, 7, size), key=mx.random.key(dims)).astype(dtype)
    rope = nn.RoPE(dims, traditional=False, base=base)
    offset = mx.array(start) if isinstance(start, list) else start
    shared = Rotation(start).shared(_Layer(rope)).self_attn.rope
    assert mx.array_equal(shared(x, offset), rope(x, offset=offset))


@pytest.mark.parametrize("start", STARTS, ids=str)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_a_draft_shares_them_too(dtype: mx.Dtype, start: Starts) -> None:
    x = mx.random.normal((2, 3, 7, 16), key=mx.random.key(1)).astype(dtype)
    rotary = Rotary(Rope("yarn", 1e6, 4.0, attention_factor=1.3), 16)
    offset = mx.array(start) if isinstance(start, list) else start
    assert mx.array_equal(rotary.at(start)(x, 0), rotary(x, offset))


class _Layer(nn.Module):
    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.self_attn = nn.Module()
        self.self_attn.rope = rope


def test_layers_of_one_pass_share_sines() -> None:
    rotation, x = Rotation(3), mx.ones((1, 2, 4, 16))
    layers = [rotation.shared(_Layer(nn.RoPE(16, base=1e4))) for _ in range(2)]
    first, second = (layer.self_attn.rope(x, offset=3) for layer in layers)
    assert mx.array_equal(first, second)
    assert len(rotation.waves) == 1


class _Scaled(nn.RoPE):
    """Frequencies of its own."""


@pytest.mark.parametrize("rope", [nn.RoPE(16, traditional=True), _Scaled(16)], ids=["pairs", "own"])
def test_other_rotations_stay_the_layers_own(rope: nn.RoPE) -> None:
    layer = _Layer(rope)
    assert Rotation(0).shared(layer) is layer


def test_nothing_is_exchanged_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    layer = _Layer(nn.RoPE(16))
    assert Rotation(0).shared(layer) is layer
