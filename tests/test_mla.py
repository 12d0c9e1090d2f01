"""Latent attention: absorbed at every width of a verification, and sparse where indexed."""

import io
from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import make_prompt_cache

from dflash_mlx.errors import UnsupportedError
from dflash_mlx.kv import KVCache
from dflash_mlx.targets import target_for
from dflash_mlx.targets.base import Target
from dflash_mlx.targets.mla import ABSORBED

from .families import prompt_of
from .reduced import CONFIGS, INDEX_TOPK, LATENT_ATTENTION, make

LATENT = ("deepseek_v3", "glm4_moe_lite", "kimi_k25", "glm_moe_dsa")
# MLX has no experts in 16 bit on the CPU.
DENSE = {"n_routed_experts": None}
HEADS, RANK, NOPE = 4, LATENT_ATTENTION["kv_lora_rank"], LATENT_ATTENTION["qk_nope_head_dim"]

bitwise = pytest.mark.skipif(
    mx.default_device() != mx.Device(mx.cpu), reason="GPUs choose kernels by the sizes"
)


def variant(family: str, **changes: Any) -> Any:
    """A new model of a family with other values in its (text) config."""
    config = dict(CONFIGS[family])
    if "text_config" in config:
        config["text_config"] = config["text_config"] | changes
    else:
        config |= changes
    return make(config, config["model_type"])


def run(target: Target, cache: KVCache, ids: list[int], fixed: bool = False) -> mx.array:
    """Logits of one pass whose rows are written but not committed."""
    start = mx.array(cache.length, mx.int32) if fixed else cache.length
    state = cache.begin(cache.length, len(ids), fixed)
    hidden, _, state = target.forward(mx.array([ids]), start, state)
    cache.update(state)
    logits = target.head(hidden)
    mx.eval(logits, cache.arrays())
    return logits


def after(target: Target, prompt: list[int]) -> KVCache:
    cache = target.new_cache()
    run(target, cache, prompt)
    cache.commit(len(prompt))
    return cache


def in_blocks(
    target: Target, prompt: list[int], ids: list[int], width: int, fixed: bool = False
) -> mx.array:
    """Logits behind each of `ids`, verified `width` at a time, all accepted."""
    cache, logits = after(target, prompt), []
    for first in range(0, len(ids), width):
        block = ids[first : first + width]
        logits.append(run(target, cache, block, fixed))
        cache.commit(len(block))
    return mx.concatenate(logits, axis=1)


def by_mlx_lm(model: Any, parts: Iterable[list[int]]) -> mx.array:
    """Logits of the passes over `parts` by mlx-lm alone."""
    cache = make_prompt_cache(model)
    return mx.concatenate([model(mx.array([ids]), cache=cache) for ids in parts], axis=1)


def far(a: mx.array, b: mx.array) -> float:
    return float(mx.abs(a.astype(mx.float32) - b.astype(mx.float32)).max().item())


@pytest.mark.parametrize("family", LATENT)
@pytest.mark.parametrize("context", [1, 7, 40, ABSORBED + 30])
def test_absorbed_equals_expanded(family: str, context: int) -> None:
    """mlx-lm absorbs at width 1 alone; a prompt as long as the last one is expanded here too."""
    model = variant(family)
    target, prompt = target_for(model), prompt_of(context)
    for width in (1, 2, 3, 16):
        block = prompt_of(width, seed=1)
        wanted = by_mlx_lm(model, [prompt, block])[:, context:]
        for fixed in (False, True):
            logits = run(target, after(target, prompt), block, fixed)
            assert far(logits, wanted) < 1e-4, (width, fixed)


@bitwise
@pytest.mark.parametrize("family", LATENT)
def test_verification_rounds_as_decoding_does(family: str) -> None:
    """In bfloat16 no bit differs, where the two forms of mlx-lm are far apart."""
    model = variant(family, **DENSE)
    model.set_dtype(mx.bfloat16)
    prompt, ids = prompt_of(40), prompt_of(48, seed=1)
    target = target_for(model)
    alone = in_blocks(target, prompt, ids, 1)
    for width in (3, 16):
        assert mx.array_equal(in_blocks(target, prompt, ids, width), alone).item(), width

    absorbed = by_mlx_lm(model, [prompt, *([i] for i in ids)])
    expanded = by_mlx_lm(model, [prompt, *(ids[i : i + 16] for i in range(0, 48, 16))])
    assert far(absorbed[:, 40:], expanded[:, 40:]) > 0.03


@pytest.mark.parametrize("family", LATENT)
def test_float32_verification_equals_decoding(family: str) -> None:
    target = target_for(variant(family))
    prompt, ids = prompt_of(40), prompt_of(32, seed=1)
    alone = in_blocks(target, prompt, ids, 1)
    # A BLAS has another kernel for one row than for several.
    tolerance = 1e-5 * float(mx.abs(alone).max().item())
    for width in (2, 16):
        assert far(in_blocks(target, prompt, ids, width), alone) < tolerance


class Spy(nn.Module):
    """A projection that notes what it is called with."""

    def __init__(self, projection: nn.Module, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.projection = projection
        self._shapes = shapes

    def __call__(self, x: mx.array, **how: bool) -> mx.array:
        self._shapes.append(x.shape)
        out: mx.array = self.projection(x, **how)
        return out


@pytest.mark.parametrize("family", LATENT)
@pytest.mark.parametrize("fixed", [False, True])
def test_nothing_is_expanded(family: str, fixed: bool) -> None:
    """The per-head matrices see the rows of the block, whatever the length of the context."""
    model, seen = variant(family), []  # type: ignore[var-annotated]
    for layer in model.layers:
        layer.self_attn.embed_q = Spy(layer.self_attn.embed_q, seen)
        layer.self_attn.unembed_out = Spy(layer.self_attn.unembed_out, seen)
    target = target_for(model)
    wide = ABSORBED + 30
    cache = after(target, prompt_of(wide))
    expanded = [(1, 1, wide, RANK)] * 2
    assert seen == expanded * len(model.layers)
    for width in (1, 2, 16, ABSORBED):
        seen.clear()
        run(target, cache, prompt_of(width), fixed)
        assert seen == [(1, HEADS, width, NOPE), (1, HEADS, width, RANK)] * len(model.layers)


QUANTISABLE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}


@pytest.mark.parametrize("family", ["kimi_k25", "glm_moe_dsa"])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised(family: str, bits: int) -> None:
    model = variant(family, **QUANTISABLE, index_head_dim=32)
    nn.quantize(model, group_size=32, bits=bits)
    attention = model.layers[1].self_attn
    assert type(attention.embed_q).__name__ == "QuantizedMultiLinear"
    prompt, ids = prompt_of(40), prompt_of(16, seed=1)
    target = target_for(model)
    wanted = by_mlx_lm(model, [prompt, *([i] for i in ids)])[:, 40:]
    for width in (1, 3, 16):
        assert far(in_blocks(target, prompt, ids, width), wanted) < 2e-4, width


@pytest.mark.parametrize("topk", [1, 4, 36, 44, 200, 1000])
def test_sparse_attention_equals_decoding(topk: int) -> None:
    """Crossed never, before or within the text, by rows or by slots (256 in a fixed pass)."""
    model = variant("glm_moe_dsa", index_topk=topk)
    target = target_for(model)
    prompt, ids = prompt_of(30), prompt_of(24, seed=1)
    wanted = by_mlx_lm(model, [prompt, *([i] for i in ids)])[:, 30:]
    for width, fixed in ((1, False), (8, False), (1, True), (8, True)):
        assert far(in_blocks(target, prompt, ids, width, fixed), wanted) < 1e-4, (width, fixed)


def test_how_many_keys_are_read_matters() -> None:
    """The test above can fail: with other numbers of keys the logits are others."""
    model, more = (variant("glm_moe_dsa", index_topk=n) for n in (INDEX_TOPK, INDEX_TOPK + 1))
    assert far(by_mlx_lm(model, [prompt_of(40)]), by_mlx_lm(more, [prompt_of(40)])) > 0.1


@bitwise
def test_picked_rows_are_read_in_one_order() -> None:
    """A partition of all slots returns them in another order than one of the rows alone."""
    target = target_for(variant("glm_moe_dsa"))
    prompt, ids = prompt_of(30), prompt_of(16, seed=1)
    exact = in_blocks(target, prompt, ids, 1)
    assert mx.array_equal(in_blocks(target, prompt, ids, 1, fixed=True), exact).item()


@pytest.mark.parametrize("width", [1, 8])
def test_rejected_rows_are_not_picked(width: int) -> None:
    """Rows behind `length` that would score best of all are left alone."""
    model = variant("glm_moe_dsa")
    target = target_for(model)
    prompt, rejected, block = prompt_of(30), prompt_of(16, seed=1), prompt_of(width, seed=2)
    wanted = run(target, after(target, prompt), block)
    cache = after(target, prompt)
    run(target, cache, rejected)
    slots = cache.state["layers"][1][0].shape[2]
    tempting = mx.where(mx.arange(slots)[:, None] < 30, 1.0, 1e4)
    cache.state["layers"] = [[a * tempting for a in pair] for pair in cache.state["layers"]]
    assert far(run(target, cache, block, fixed=True), wanted) < 1e-5


def test_the_indexers_rows_are_computed_although_unused() -> None:
    """Below `index_topk` nothing reads them; left lazy, they would pile up a graph per pass."""
    target = target_for(variant("glm_moe_dsa", index_topk=1000))
    cache, pending = target.new_cache(), []
    for _ in range(4):
        state = cache.begin(cache.length, 2, fixed=False)
        hidden, _, state = target.forward(mx.array([[1, 2]]), cache.length, state)
        cache.update(state)
        cache.commit(2)
        mx.eval(hidden)
        graph = io.StringIO()
        mx.export_to_dot(graph, *cache.arrays())
        pending.append(graph.getvalue().count("->"))
    assert pending[3] <= pending[1]


def test_the_index_has_no_values() -> None:
    target = target_for(variant("glm_moe_dsa"))
    cache = after(target, prompt_of(20))
    (latents, rotary), (index, values) = cache.state["layers"][:2]
    assert [a.shape[3] for a in (latents, rotary, index, values)] == [RANK, 4, 8, 1]
    assert not values.any().item()


@pytest.mark.parametrize("interleave", [False, True])
def test_deepseek_v32(interleave: bool) -> None:
    """The same layers as GLM-5, with YaRN and the indexer's rotary halves in another order."""
    yarn = CONFIGS["kimi_k25"]["text_config"]["rope_scaling"]
    glm = {k: v for k, v in CONFIGS["glm_moe_dsa"].items() if k != "rope_parameters"}
    changes = {"rope_scaling": yarn, "indexer_rope_interleave": interleave}
    model = make(glm | changes, "deepseek_v32")
    prompt, block = prompt_of(40), prompt_of(8, seed=1)
    target = target_for(model)
    logits = run(target, after(target, prompt), block)
    assert far(logits, by_mlx_lm(model, [prompt, block])[:, 40:]) < 1e-4


def test_kimi_k2_without_the_wrapper() -> None:
    model = make(CONFIGS["kimi_k25"]["text_config"], "deepseek_v3")
    assert model.model_type == "kimi_k2"
    ids = prompt_of(20)
    target = target_for(model)
    assert far(run(target, target.new_cache(), ids), by_mlx_lm(model, [ids])) < 1e-4


def test_an_attention_built_otherwise_is_refused() -> None:
    model = variant("kimi_k25")
    del model.layers[2].self_attn["embed_q"]
    with pytest.raises(UnsupportedError, match="builds DeepseekV3Attention without 'embed_q'"):
        target_for(model)
