"""The DFlash network against a second, plain way to compute the same."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from dflash_mlx.config import FULL, SLIDING, DFlash2, DraftConfig
from dflash_mlx.drafts import draft_for
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.drafts.dflash2 import GroupedDynamicCausalConv
from dflash_mlx.rope import Rope

from .families import HIDDEN, draft_config, random_draft

YARN = Rope("yarn", 10000.0, 32.0, 32, 32.0, 1.0, 1.25)
LLAMA3 = Rope("llama3", 10000.0, 8.0, 64, low_freq_factor=1.0, high_freq_factor=4.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, causal": {"causal": (True, True)},
    "sliding, causal": {
        "layer_types": (SLIDING, FULL),
        "causal": (True, False),
        "sliding_window": 12,
    },
    "sliding, both ways": {"layer_types": (SLIDING, SLIDING), "sliding_window": 12},
    "biases": {"attention_bias": True},
    "yarn": {"rope": YARN},
    "yarn, not truncated": {"rope": replace(YARN, truncate=False)},
    "llama3": {"rope": LLAMA3},
    "scaled": {
        "output_multiplier": 0.2,
        "final_logit_softcapping": 20.0,
        "input_embedding_scale": 3.0,
    },
    "one tap, four layers": {
        "num_layers": 4,
        "taps": (1,),
        "layer_types": (FULL,) * 4,
        "causal": (False,) * 4,
    },
    "dflash 2": {
        "layer_types": (SLIDING, SLIDING),
        "sliding_window": 12,
        "dflash2": DFlash2(2, 16, 8, 4),
    },
    "dflash 2, kernels wider than the block": {"dflash2": DFlash2(7, 8, 8, 4)},
}


def angles(rope: Rope, dims: int, positions: mx.array) -> mx.array:
    """Rotation per position and pair [L, dims / 2], written from the papers' formulas."""
    inverse = [rope.theta ** (-2 * i / dims) for i in range(dims // 2)]
    if rope.kind == "yarn":

        def cutoff(rotations: float) -> float:
            length = rope.original_max_position / (2 * math.pi * rotations)
            return dims * math.log(length) / (2 * math.log(rope.theta))

        low, high = cutoff(rope.beta_fast), cutoff(rope.beta_slow)
        if rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dims - 1)
        for i, frequency in enumerate(inverse):
            ramp = min(max((i - low) / max(high - low, 1e-3), 0), 1)
            inverse[i] = frequency / rope.factor * ramp + frequency * (1 - ramp)
    if rope.kind == "llama3":
        for i, frequency in enumerate(inverse):
            wavelength = 2 * math.pi / frequency
            smooth = rope.original_max_position / wavelength - rope.low_freq_factor
            smooth /= rope.high_freq_factor - rope.low_freq_factor
            if wavelength > rope.original_max_position / rope.low_freq_factor:
                inverse[i] = frequency / rope.factor
            elif wavelength > rope.original_max_position / rope.high_freq_factor:
                inverse[i] = (1 - smooth) * frequency / rope.factor + smooth * frequency
    return positions[:, None] * mx.array(inverse)


def rotate(x: mx.array, rope: Rope, positions: mx.array) -> mx.array:
    angle = angles(rope, x.shape[-1], positions)
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    cos, sin = mx.cos(angle), mx.sin(angle)
    turned = mx.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned * (rope.attention_factor if rope.kind == "yarn" else 1.0)


def convolved(
    conv: GroupedDynamicCausalConv, rows: mx.array, sublayer: Callable[[mx.array], mx.array]
) -> mx.array:
    """A sublayer between its convolutions, channel by channel and row by row."""
    _, reach, size = conv.base_kernel.shape
    length, groups = rows.shape[1], size // conv._group_size
    dynamic = conv.kernel_projection(rows)[0].reshape(length, 2, reach, groups)
    groups_of = mx.arange(size) // conv._group_size

    def run(x: mx.array, which: int) -> mx.array:
        out = []
        for t in range(length):
            row = mx.zeros(size)
            for o in range(min(reach, t + 1)):
                kernel = conv.base_kernel[which, o] + dynamic[t, which, o][groups_of]
                row = row + kernel * x[0, t - o]
            out.append(row)
        return mx.stack(out)[None]

    return run(sublayer(run(rows, 0)), 1)


def plain(draft: DFlashDraft, features: mx.array, block: mx.array) -> mx.array:
    """Everything from scratch: all context rows, no cache, attention written out."""
    config, rows, length = draft.config, features.shape[1], block.shape[1]
    context = draft.hidden_norm(draft.fc(features))
    positions = mx.arange(rows + length)
    x = block * config.input_embedding_scale

    def heads(y: mx.array) -> mx.array:
        return y.reshape(1, y.shape[1], -1, config.head_dim).transpose(0, 2, 1, 3)

    def attend(i: int, h: mx.array) -> mx.array:
        a = draft.layers[i].self_attn
        both = mx.concatenate([context, h], axis=1)
        q = rotate(a.q_norm(heads(a.q_proj(h))), config.rope, positions[rows:])
        k = rotate(a.k_norm(heads(a.k_proj(both))), config.rope, positions)
        v = heads(a.v_proj(both))
        groups = config.num_heads // config.num_kv_heads
        k, v = mx.repeat(k, groups, axis=1), mx.repeat(v, groups, axis=1)
        query, key = positions[rows:, None], positions[None]
        seen = mx.ones((length, rows + length), mx.bool_)
        if config.layer_types[i] == SLIDING:
            assert config.sliding_window is not None
            seen = seen & (query - key < config.sliding_window)
        if config.causal[i]:
            seen = seen & (key <= query)
        scores = mx.where(seen, (q @ k.transpose(0, 1, 3, 2)) * config.head_dim**-0.5, -mx.inf)
        out = (mx.softmax(scores, axis=-1) @ v).transpose(0, 2, 1, 3).reshape(1, length, -1)
        return a.o_proj(out)

    def think(i: int, h: mx.array) -> mx.array:
        m = draft.layers[i].mlp
        return m.down_proj(nn.silu(m.gate_proj(h)) * m.up_proj(h))

    for i, layer in enumerate(draft.layers):
        for norm, name, sublayer in (
            (layer.input_layernorm, "attention_conv", attend),
            (layer.post_attention_layernorm, "mlp_conv", think),
        ):
            h, run = norm(x), partial(sublayer, i)
            x = x + (convolved(layer[name], h, run) if config.dflash2 else run(h))
    return draft.norm(x)


def randomised(config: DraftConfig) -> DFlashDraft:
    """Random norms and biases too: ones and zeros would hide a wrong use of them."""
    draft = draft_for(config)
    key = mx.random.key(5)

    def noise(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {k: noise(v) for k, v in tree.items()}
        if isinstance(tree, list):
            return [noise(v) for v in tree]
        scale = 0.3 if tree.ndim == 1 else 0.15
        return mx.random.normal(tree.shape, key=mx.random.split(key, tree.size)[-1]) * scale + (
            1.0 if tree.ndim == 1 else 0.0
        )

    draft.update(noise(draft.parameters()))
    return draft.prepare()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fixed", [False, True])
def test_rounds_equal_computing_from_scratch(variant: str, fixed: bool) -> None:
    """Several rounds: the cache grows, rejected rows are overwritten, windows slide."""
    draft = randomised(draft_config(**VARIANTS[variant]))
    taps, width = len(draft.config.taps), 6
    features = mx.random.normal((1, 100, taps * HIDDEN), key=mx.random.key(1))
    block = mx.random.normal((1, width, HIDDEN), key=mx.random.key(2))
    garbage = mx.random.normal((1, width, taps * HIDDEN), key=mx.random.key(3)) * 50
    cache = draft.new_cache()

    first = 7
    cache.reserve(first)
    cache.state = draft.extend(features[:, :first], 0, cache.state)
    cache.commit(first)
    for kept in (3, 1, 6, 2, 6, 6, 6, 6, 6):
        start = cache.length + kept
        rows = features[:, cache.length : start]
        if fixed:  # rows of rejected tokens trail
            rows = mx.concatenate([rows, garbage[:, kept:]], axis=1)
        cache.reserve(kept + width)
        place = (lambda n: mx.array(n, mx.int32)) if fixed else (lambda n: n)
        state = cache.fixed() if fixed else cache.state
        state = draft.extend(rows, place(cache.length), state)
        hidden, state = draft.forward(block, place(start), state)
        cache.update(state)
        cache.commit(kept)
        wanted = plain(draft, features[:, :start], block)
        assert mx.allclose(hidden, wanted, rtol=2e-4, atol=2e-4).item(), (kept, start)


def test_parameter_names_are_the_checkpoints() -> None:
    from mlx.utils import tree_flatten

    names = {name for name, _ in tree_flatten(random_draft(draft_config()).parameters())}
    layer = {
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        *(f"self_attn.{n}.weight" for n in ("q_proj", "k_proj", "v_proj", "o_proj")),
        *(f"self_attn.{n}.weight" for n in ("q_norm", "k_norm")),
        *(f"mlp.{n}.weight" for n in ("gate_proj", "up_proj", "down_proj")),
    }
    layers = {f"layers.{i}.{name}" for i in range(2) for name in layer}
    assert names == layers | {"fc.weight", "hidden_norm.weight", "norm.weight"}


def test_joined_projections_hold_nothing_twice() -> None:
    """Large enough that what other tests leave in the process does not matter."""
    draft = DFlashDraft(draft_config(num_layers=2, hidden_size=512, head_dim=128))
    mx.eval(draft.parameters())
    attention = [layer.self_attn for layer in draft.layers]
    projected = sum(a.k_proj.weight.nbytes + a.v_proj.weight.nbytes for a in attention)
    assert projected > 2**20
    before = mx.get_active_memory()
    draft.prepare()
    assert draft._project is not None
    mx.eval([linear.weight for linear, _ in draft._project.joined._parts])
    assert mx.get_active_memory() - before < projected / 4


def test_quantised_draft_projects_the_same_context() -> None:
    config = draft_config(hidden_size=64, head_dim=16)
    draft = DFlashDraft(config)
    nn.quantize(draft, group_size=32, bits=8)
    draft.prepare()
    layer = draft.layers[1].self_attn
    rows = mx.random.normal((1, 5, 64), key=mx.random.key(1))
    assert draft._project is not None
    _, values = draft._project(rows, draft._rotary, 0)[1]
    wanted = layer.v_proj(rows).reshape(1, 5, 2, 16).transpose(0, 2, 1, 3)
    assert mx.allclose(values, wanted, atol=1e-5).item()


def test_logits_are_scaled_and_capped() -> None:
    draft = random_draft(draft_config(output_multiplier=0.5, final_logit_softcapping=10.0))
    logits = mx.array([[[4.0, -100.0]]])
    wanted = [10 * math.tanh(2 / 10), 10 * math.tanh(-50 / 10)]
    assert mx.allclose(draft.shape_logits(logits)[0, 0], mx.array(wanted), atol=1e-5).item()
