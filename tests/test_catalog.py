"""The catalog against the published configs, and the estimate against real caches."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import MODEL_REMAPPING

from dflash_mlx import footprint, kv
from dflash_mlx.catalog import DRAFTS, TARGETS
from dflash_mlx.config import DraftConfig
from dflash_mlx.drafts import draft_for
from dflash_mlx.footprint import DraftShape, Estimate, Rows, Weights, heads, target_shape
from dflash_mlx.generation import rounds
from dflash_mlx.options import Options
from dflash_mlx.recurrent import HybridCache
from dflash_mlx.session import Session

from . import published
from .families import draft_config, make_pair, prompt_of, random_draft
from .reduced import CONFIGS

GIB = 2**30
BLOCK = 8
# One of each way to keep what was seen.
CACHES = (
    *("llama", "llama-sliding", "qwen3_next", "qwen3_5", "kimi_k25", "glm_moe_dsa"),
    *("gpt_oss", "gemma4", "gemma4-shared", "minimax_m2", "muse_glimmer"),
)


def count(module: nn.Module) -> int:
    return sum(value.size for _, value in tree_flatten(module.parameters()))


def built(config: dict[str, Any]) -> nn.Module:
    """mlx-lm's model; its weights are never computed."""
    kind = config["model_type"]
    module = import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(kind, kind)}")
    return module.Model(module.ModelArgs.from_dict(config))


def test_the_published_configs_are_of_these_models() -> None:
    assert set(published.TARGETS) == set(TARGETS)
    assert set(published.DRAFTS) < set(DRAFTS)


@pytest.mark.parametrize("name", published.TARGETS)
def test_targets_are_as_published(name: str) -> None:
    listed, config = TARGETS[name], published.TARGETS[name]
    assert set(target_shape(config).rows) == set(listed.shape.rows)
    assert target_shape(config).recurrent == listed.shape.recurrent
    model = built(config)
    assert listed.weights.parameters == count(model)
    if listed.weights.packed:
        experts = [m for n, m in model.named_modules() if n.endswith(("switch_mlp", "experts"))]
        assert listed.weights.packed == sum(
            v.size for m in experts for _, v in tree_flatten(m.parameters()) if v.ndim == 3
        )


@pytest.mark.parametrize("name", published.DRAFTS)
def test_drafts_are_as_published(name: str) -> None:
    listed = DRAFTS[name]
    config = DraftConfig.from_dict(published.DRAFTS[name], name)
    assert listed.weights is not None and listed.shape.rows is not None
    assert listed.weights.parameters == count(draft_for(config))
    assert (listed.shape.layers, listed.shape.block) == (config.num_layers, config.block_size)
    assert listed.shape.taps == len(config.taps)
    found = [heads(1, config.num_kv_heads, config.head_dim, w) for w in config.windows]
    assert sum(r.elements(9000) for r in found) == sum(r.elements(9000) for r in listed.shape.rows)


@pytest.mark.parametrize("name", published.DRAFT_GIB)
def test_drafts_are_as_large_as_their_files(name: str) -> None:
    weights = DRAFTS[name].weights
    assert weights is not None
    assert weights.on_disk(None) / GIB == pytest.approx(published.DRAFT_GIB[name], abs=0.006)


@pytest.mark.parametrize(
    ("name", "size"),
    [  # bytes of all tensors, as the hub's indexes state them
        ("Qwen/Qwen3-4B", 8_044_936_192),
        ("Qwen/Qwen3-8B", 16_381_470_720),
        ("meta-llama/Llama-3.1-8B-Instruct", 16_060_522_496),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", 61_064_245_248),
        ("openai/gpt-oss-20b", 13_761_264_768),
        ("openai/gpt-oss-120b", 65_248_815_744),
    ],
)
def test_targets_are_as_large_as_their_files(name: str, size: int) -> None:
    assert TARGETS[name].weights.on_disk(None) == pytest.approx(size, rel=1e-3)


def test_the_figures_of_the_caches_are_theirs() -> None:
    assert footprint.STEP == kv.STEP
    assert Options().prefill_chunk == footprint.CHUNK


def held(cache: kv.KVCache) -> int:
    """Bytes of all arrays a cache holds."""
    kept: list[Any] = [cache.state["layers"]]
    if isinstance(cache, HybridCache):
        kept += [[part for part in p.values() if part is not None] for p in cache._passes]
    return sum(value.nbytes for _, value in tree_flatten(kept) if isinstance(value, mx.array))


@pytest.mark.parametrize(
    ("family", "tokens"), [*((family, 1100) for family in CACHES), ("llama-sliding", 300)]
)
def test_caches_take_what_is_estimated(family: str, tokens: int) -> None:
    pair = make_pair(family, random_draft(draft_config(block_size=BLOCK)))
    session = Session(pair.target, pair.draft)
    for _ in rounds(pair, prompt_of(tokens), Options(max_tokens=4), session):
        pass
    shape = target_shape(CONFIGS[family])
    assert held(session.cache) == shape.cache(tokens + 4, BLOCK, 4)
    assert session.context is not None
    context = DraftShape(2, BLOCK, 2, (heads(2, 2, 16),))
    assert held(session.context) == context.context(tokens + 4, 4)


def test_sliding_layers_stop_growing() -> None:
    rows = Rows(1, 2, window=1024)
    assert rows.elements(1) == 2 * 256
    assert rows.elements(10_000) == rows.elements(100_000) == 2 * (1024 + 256 + 512)


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_weights_take_what_is_estimated(bits: int | None, itemsize: int) -> None:
    model = nn.Sequential(nn.Embedding(512, 256), nn.Linear(256, 1024, bias=False))
    model.set_dtype(mx.bfloat16 if itemsize == 2 else mx.float32)
    weights = Weights(count(model))
    if bits:
        nn.quantize(model, 64, bits)
    measured = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    assert weights.loaded(bits, itemsize) == measured
    if itemsize == 2:
        assert weights.on_disk(bits) == measured


@pytest.mark.parametrize(("stored", "mode"), [("mxfp4", "mxfp4"), ("int4", "affine")])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_packed_weights_stay_packed(stored: str, mode: str, itemsize: int) -> None:
    linear = nn.Linear(256, 1024, bias=False)
    linear.set_dtype(mx.bfloat16 if itemsize == 2 else mx.float32)
    packed = nn.QuantizedLinear.from_linear(linear, 32, 4, mode=mode)
    measured = sum(value.nbytes for _, value in tree_flatten(packed.parameters()))
    weights = Weights(256 * 1024, stored, 256 * 1024)
    assert [weights.loaded(bits, itemsize) for bits in (None, 4, 8)] == [measured] * 3


def test_what_is_not_known_makes_a_lower_bound() -> None:
    whole = Estimate(100, 50, 30, 20)
    assert (whole.complete, whole.total) == (True, 200 + whole.allowance)
    assert whole.allowance == footprint.ALLOWANCE + 10
    part = Estimate(100, None, 30, 20)
    assert (part.complete, part.total) == (False, 150 + part.allowance)
    assert DraftShape(layers=5).context(100, 2) is None
