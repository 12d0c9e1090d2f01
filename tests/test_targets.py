"""The contract of a target, for every family."""

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.pipeline import PipelineMixin

from dflash_mlx.errors import PairError, UnsupportedError
from dflash_mlx.kv import KVCache
from dflash_mlx.targets import TARGETS, target_for
from dflash_mlx.targets.base import Target

from .families import FAMILIES, build, language_model, prompt_of

TAPS = (0, 1, 3)


def close(a: mx.array, b: mx.array) -> bool:
    """Equal but for the rounding of sums, relative to the largest value."""
    return bool((mx.abs(a - b).max() <= 2e-5 * mx.maximum(mx.abs(b).max(), 1)).item())


def run(target: Target, cache: KVCache, ids: list[int], fixed: bool = False) -> Any:
    """One pass whose rows are written but not committed."""
    start = mx.array(cache.length, mx.int32) if fixed else cache.length
    state = cache.begin(cache.length, len(ids), fixed)
    hidden, features, state = target.forward(mx.array([ids]), start, state)
    cache.update(state)
    logits = target.logits(hidden)
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
        cut = copy.copy(target.backbone)
        cut.layers = cut.layers[: tap + 1]
        cut.norm = nn.Identity()
        if isinstance(cut, PipelineMixin):
            cut.end_idx = tap + 1  # it runs a range of layers
        assert close(feature, cut(mx.array([ids]), cache=make_prompt_cache(model))), tap


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
    model = build(family)
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


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        ("mamba9", "has no such model either and would need one first"),
        ("mamba2", "has it, but it needs a file in dflash_mlx/targets that runs its layers"),
        ("falcon_mamba", "has it, but it needs a file"),  # the module is called mamba
    ],
)
def test_an_unknown_family(kind: str, needed: str) -> None:
    class Unknown:
        model_type = kind

    with pytest.raises(UnsupportedError) as refused:
        target_for(Unknown())
    text = str(refused.value)
    assert f"the target is of type '{kind}', which is not supported: mlx-lm 0." in text
    assert needed in text
    assert text.endswith(f"supported are {', '.join(TARGETS)}")
