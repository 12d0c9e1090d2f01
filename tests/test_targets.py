"""The contract of a target, for every family."""

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from dflash_mlx.errors import PairError, UnsupportedError
from dflash_mlx.kv import KVCache
from dflash_mlx.targets import TARGETS, target_for
from dflash_mlx.targets.base import Target

from .families import FAMILIES, language_model, prompt_of

TAPS = (0, 1, 3)


def close(a: mx.array, b: mx.array) -> bool:
    return bool(mx.allclose(a, b, rtol=1e-4, atol=1e-4).item())


def run(target: Target, cache: KVCache, ids: list[int], fixed: bool = False) -> Any:
    """One pass whose rows are written but not committed."""
    cache.reserve(len(ids))
    start = mx.array(cache.length, mx.int32) if fixed else cache.length
    state = cache.fixed() if fixed else cache.state
    hidden, features, state = target.forward(mx.array([ids]), start, state)
    cache.update(state)
    logits = target.head(hidden)
    mx.eval(logits, features, cache.arrays())
    return logits, features


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_mlx_lm(family: str) -> None:
    model = language_model(family)
    ids = prompt_of(40)
    target = target_for(model, TAPS)
    logits, _ = run(target, target.new_cache(), ids)
    assert close(logits, model(mx.array([ids])))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_layers_outputs(family: str) -> None:
    """Behind layer t: what a model of only the first t + 1 layers hands to its final norm."""
    model = language_model(family)
    ids = prompt_of(40)
    target = target_for(model, TAPS)
    _, features = run(target, target.new_cache(), ids)
    for tap, feature in zip(TAPS, mx.split(features, len(TAPS), axis=-1), strict=True):
        cut = copy.copy(model.model)
        cut.layers = model.model.layers[: tap + 1]
        cut.norm = nn.Identity()
        if family == "qwen3_moe":
            cut.end_idx = tap + 1  # its pipeline keeps a range of layers
        assert close(feature, cut(mx.array([ids]), cache=[None] * 4)), tap


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fixed", [False, True])
def test_commit_keeps_just_that_many_rows(family: str, fixed: bool) -> None:
    """Verify a block, commit n rows of it, go on: as if only those had ever been seen."""
    target = target_for(language_model(family), TAPS)
    prompt, block, rest = prompt_of(40), prompt_of(9, seed=1), prompt_of(5, seed=2)
    for kept in range(len(block) + 1):
        fresh = target.new_cache()
        run(target, fresh, prompt)
        fresh.commit(len(prompt))
        if kept:
            run(target, fresh, block[:kept])
            fresh.commit(kept)
        wanted, wanted_features = run(target, fresh, rest)

        cache = target.new_cache()
        run(target, cache, prompt)
        cache.commit(len(prompt))
        run(target, cache, block, fixed)
        cache.commit(kept)
        logits, features = run(target, cache, rest, fixed)
        assert close(logits, wanted), kept
        assert close(features, wanted_features), kept


def test_two_targets_share_a_model_with_different_taps() -> None:
    model = language_model("llama")
    one, other = target_for(model, (0,)), target_for(model, (1, 3))
    ids = prompt_of(12)
    _, alone = run(one, one.new_cache(), ids)
    _, features = run(other, other.new_cache(), ids)
    _, again = run(one, one.new_cache(), ids)
    assert features.shape[-1] == 2 * alone.shape[-1]
    assert mx.array_equal(alone, again).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_mlx_lm_is_left_as_it_is(family: str) -> None:
    model = FAMILIES[family]()
    before = [name for name, _ in tree_flatten(model.parameters())]
    layers = [type(layer) for layer in model.layers]
    calls = [type(layer).__call__ for layer in model.layers]
    target = target_for(model, TAPS)
    run(target, target.new_cache(), prompt_of(8))
    assert [name for name, _ in tree_flatten(model.parameters())] == before
    assert [type(layer) for layer in model.layers] == layers
    assert [type(layer).__call__ for layer in model.layers] == calls


def test_sliding_layers_are_bounded() -> None:
    target = target_for(language_model("llama-sliding"))
    cache = target.new_cache()
    for first in range(0, 2000, 50):
        run(target, cache, prompt_of(50, seed=first))
        cache.commit(50)
    full, sliding = (cache.state["layers"][i][0].shape[2] for i in (0, 1))
    assert full >= 2000
    assert sliding <= 16 + 2 * 256 + 256


def test_a_tap_outside_the_target() -> None:
    with pytest.raises(PairError, match="taps target layer 9, but the target has only 4 layers"):
        target_for(language_model("llama"), (1, 9))


def test_an_unknown_family() -> None:
    class Unknown:
        model_type = "mamba9"

    with pytest.raises(UnsupportedError, match="'mamba9' are not supported; supported are llama"):
        target_for(Unknown())
    assert {"llama", "qwen3", "qwen3_moe"} <= set(TARGETS)
