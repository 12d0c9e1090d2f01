"""Rollback of recurrent layers: what a pass records, what the next one replays."""

from typing import Any

import mlx.core as mx
import pytest

from dflash_mlx.errors import UnsupportedError
from dflash_mlx.recurrent import RECORDED, HybridCache, RecurrentView
from dflash_mlx.targets import target_for
from dflash_mlx.targets.base import Target
from dflash_mlx.targets.gated_delta import GatedDeltaTarget
from dflash_mlx.targets.twin import twin

from .families import build, language_model, prompt_of

HYBRIDS = ["qwen3_next", "qwen3_5", "qwen3_5_moe"]


def advance(target: Target, cache: HybridCache, ids: list[int], kept: int | None = None) -> Any:
    """One pass over `ids`, of which `kept` rows are committed."""
    state = cache.begin(cache.length, len(ids), fixed=False)
    hidden, _, state = target.forward(mx.array([ids]), cache.length, state)
    cache.update(state)
    cache.commit(len(ids) if kept is None else kept)
    mx.eval(hidden, cache.arrays())
    return hidden


def fresh(family: str) -> tuple[Target, HybridCache]:
    target = target_for(language_model(family))
    cache = target.new_cache()
    assert isinstance(cache, HybridCache)
    return target, cache


def past(target: Target, cache: HybridCache) -> list[mx.array]:
    """The recurrent state at the committed length, by mlx-lm's own cache where a test needs it."""
    assert isinstance(target, GatedDeltaTarget)
    settled = target._settle(cache.begin(cache.length, 1, fixed=False))
    return [a for layer in settled for a in layer if a is not None]


@pytest.mark.parametrize("family", HYBRIDS)
def test_a_replay_ends_in_mlx_lms_own_state(family: str) -> None:
    """For every accept point: convolution inputs and matrices as if only those rows had been."""
    model = language_model(family)
    prompt, block = prompt_of(9), prompt_of(6, seed=1)
    for kept in range(len(block) + 1):
        target, cache = fresh(family)
        advance(target, cache, prompt)
        advance(target, cache, block, kept)
        theirs = model.make_cache()
        model(mx.array([prompt]), cache=theirs)
        if kept:
            model(mx.array([block[:kept]]), cache=theirs)
        wanted = [a for c in theirs if not hasattr(c, "keys") for a in c.cache]
        found = past(target, cache)
        assert len(found) == len(wanted) == 6
        for ours, other in zip(found, wanted, strict=True):
            assert mx.allclose(ours, other, rtol=1e-5, atol=1e-5).item(), kept


def test_state_stays_float32_in_lower_precision() -> None:
    model = build("qwen3_5")
    model.set_dtype(mx.bfloat16)
    target, cache = target_for(model), HybridCache((None,), 3)
    advance(target, cache, prompt_of(5))
    advance(target, cache, prompt_of(5), kept=2)
    conv, matrices = past(target, cache)[::2], past(target, cache)[1::2]
    assert {a.dtype for a in conv} == {mx.bfloat16}
    assert {a.dtype for a in matrices} == {mx.float32}


def test_nothing_is_replayed_where_every_row_was_kept() -> None:
    _, cache = fresh("qwen3_5")
    target = target_for(language_model("qwen3_5"))
    for ids in (prompt_of(30), prompt_of(1), prompt_of(6)):
        advance(target, cache, ids)
        assert "rows" not in cache.begin(cache.length, 4, fixed=False)
    advance(target, cache, prompt_of(6), kept=2)
    state = cache.begin(cache.length, 4, fixed=False)
    assert state["kept"] == 2
    assert len(state["rows"]) == 3


def test_a_prefill_records_nothing() -> None:
    target, cache = fresh("qwen3_5")
    state = cache.begin(0, RECORDED + 1, fixed=False)
    _, _, state = target.forward(mx.array([prompt_of(RECORDED + 1)]), 0, state)
    assert [p["rows"] for p in state["passes"]] == [None] * 3


def test_a_pass_that_was_issued_ahead_is_taken_back() -> None:
    """Plain decoding issues a step before it knows whether the text goes on."""
    target, cache = fresh("qwen3_5")
    advance(target, cache, prompt_of(12))
    before = past(target, cache)
    advance(target, cache, [7], kept=0)
    for ours, other in zip(past(target, cache), before, strict=True):
        assert mx.array_equal(ours, other).item()


def test_trim_reaches_back_into_the_last_pass_only() -> None:
    target, cache = fresh("qwen3_5")
    advance(target, cache, prompt_of(12))
    advance(target, cache, prompt_of(8))
    assert cache.trim(15) == 15
    assert cache.trim(12) == 12
    assert cache.trim(11) == 0
    # From nothing again, and rightly so.
    again, other = fresh("qwen3_5")
    wanted = advance(again, other, prompt_of(20, seed=3))
    assert mx.allclose(advance(target, cache, prompt_of(20, seed=3)), wanted, atol=1e-5).item()


def test_an_interrupted_pass_changes_nothing() -> None:
    target, cache = fresh("qwen3_5")
    advance(target, cache, prompt_of(12))
    before = past(target, cache)
    cache.begin(cache.length, 8, fixed=False)  # and the pass never comes to its end
    assert cache.trim(12) == 12
    for ours, other in zip(past(target, cache), before, strict=True):
        assert mx.array_equal(ours, other).item()


def test_a_wrong_replay_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first test of this file can fail: one row too many leaves another state."""
    replay = GatedDeltaTarget._replay

    def sloppy(self: Any, net: Any, past: Any, rows: Any, kept: int) -> Any:
        return replay(self, net, past, rows, kept + 1)

    monkeypatch.setattr(GatedDeltaTarget, "_replay", sloppy)
    with pytest.raises(AssertionError, match="1"):
        test_a_replay_ends_in_mlx_lms_own_state("qwen3_5")


def test_a_twin_shares_weights_and_leaves_its_original_alone() -> None:
    layer = language_model("qwen3_5").layers[0]
    other = twin(layer, linear_attn=None)
    assert other.linear_attn is None
    assert layer.linear_attn is not None
    assert other.mlp is layer.mlp


def test_a_part_that_mlx_lm_has_renamed() -> None:
    layer = language_model("qwen3_5").layers[0]
    with pytest.raises(UnsupportedError, match=r"builds DecoderLayer without 'recurrence'"):
        twin(layer, recurrence=None)


def test_a_view_is_what_mlx_lm_expects_of_its_cache() -> None:
    view = RecurrentView([None, None])
    view[0] = mx.zeros(1)
    view.advance(3)
    assert view[0] is view.past[0]
    assert view.lengths is None
