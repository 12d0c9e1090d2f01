"""A draft that would propose nothing useful is refused while loading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_map

from dflash_mlx import draftcheck
from dflash_mlx.config import FULL, SLIDING, DFlash2, DraftConfig
from dflash_mlx.draftcheck import CONTEXT, FLOOR, LENGTH, ROWS, Agreement, check_draft
from dflash_mlx.drafts import draft_for
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.drafts.quantised import quantise
from dflash_mlx.errors import CheckpointError, DFlashError, UnsupportedError
from dflash_mlx.loading import load
from dflash_mlx.targets import target_for
from dflash_mlx.targets.base import Target

from .families import build, draft_config, language_model, prompt_of, random_draft
from .test_loading import write_draft, write_target

PROMPT = prompt_of(200)
SIZE = 64  # divisible by the groups of a quantised layer
CONFIG = draft_config(hidden_size=SIZE, intermediate_size=128)
VARIANTS: dict[str, dict[str, Any]] = {
    "blocks of 2": {"block_size": 2},
    "blocks of 16": {"block_size": 16},
    "blocks longer than the prompt": {"block_size": 64},
    "sliding": {
        "layer_types": (SLIDING, FULL),
        "causal": (True, False),
        "sliding_window": 12,
    },
    "biases": {"attention_bias": True},
    "dflash 2": {"dflash2": DFlash2(2, 16, 8, 4)},
}


def wide_target(dtype: mx.Dtype = mx.float32) -> Target:
    """A target whose hidden size fits `CONFIG`."""
    from mlx_lm.models import llama

    mx.random.seed(5)
    sizes = {"hidden_size": SIZE, "num_hidden_layers": 4, "intermediate_size": 80}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    args = llama.ModelArgs(model_type="llama", rms_norm_eps=1e-5, **sizes, **heads)
    model = llama.Model(args)
    model.update(tree_map(lambda w: 3 * w if w.ndim > 1 else w, model.parameters()))
    model.set_dtype(dtype)
    return target_for(model, CONFIG.taps)


def lively(config: DraftConfig = CONFIG) -> DFlashDraft:
    """A draft whose proposals depend on its layers, as those of a trained one do."""
    mx.random.seed(11)
    draft = draft_for(config)
    draft.update(tree_map(lambda w: 4 * w if w.ndim > 1 else w, draft.parameters()))
    return draft.prepare()


def never() -> DFlashDraft:
    raise AssertionError("only a quantised draft is read again")


def in_dtype(draft: DFlashDraft, dtype: mx.Dtype) -> DFlashDraft:
    draft.set_dtype(dtype)
    return draft.prepare()


def in_bits(bits: int) -> DFlashDraft:
    draft = lively()
    quantise(draft, bits)
    return draft.prepare()


def small_target() -> Target:
    return target_for(language_model("llama"), draft_config().taps)


def test_float32_needs_no_second_run() -> None:
    found = check_draft(small_target(), random_draft(draft_config()), PROMPT, "d", never)
    assert found == Agreement(7, 7)  # one block of 8


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_bfloat16_agrees(changes: dict[str, Any]) -> None:
    config = draft_config(**changes)
    draft = in_dtype(lively(config), mx.bfloat16)
    found = check_draft(small_target(), draft, PROMPT, "d", never)
    assert found.rows >= min(ROWS, LENGTH - CONTEXT)
    assert found.rows % (config.block_size - 1) == 0
    assert FLOOR < found.share <= 1


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_drafts_are_held_against_the_original(bits: int) -> None:
    read: list[DFlashDraft] = []

    def original() -> DFlashDraft:
        read.append(lively())
        return read[-1]

    found = check_draft(wide_target(), in_bits(bits), PROMPT, "d", original, bits)
    assert len(read) == 1
    assert found.share > FLOOR
    assert bits == 4 or found.share > 0.9


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_reference_is_a_float32_run(changes: dict[str, Any]) -> None:
    """Widening matrices one by one gives what a network of float32 weights gives."""
    config = draft_config(**changes)
    stored = in_dtype(lively(config), mx.bfloat16)
    plain = draft_for(config)
    widened = [(name, w.astype(mx.float32)) for name, w in tree_flatten(stored.parameters())]
    plain.load_weights(widened)
    plain.prepare()
    twin = draftcheck._in_float32(stored)
    target, anchors = small_target(), [16, 30]
    features = draftcheck._features(target, PROMPT[:LENGTH])
    blocks = [draftcheck._blocks(target, d, PROMPT, features, anchors) for d in (twin, plain)]
    for ours, exact in zip(*blocks, strict=True):
        assert ours.dtype == mx.float32
        assert mx.allclose(ours, exact, rtol=1e-5, atol=1e-5)


def test_the_reference_shares_the_matrices() -> None:
    stored = in_dtype(random_draft(draft_config()), mx.bfloat16)
    twin = draftcheck._in_float32(stored)
    assert stored.dtype == mx.bfloat16  # untouched
    assert twin.fc.weight is stored.fc.weight
    assert twin.layers[0].mlp.up_proj.weight is stored.layers[0].mlp.up_proj.weight


# Refused


def outliers(draft: DFlashDraft) -> None:
    """The fusion's norm takes out any factor of `fc`, so in float32 nothing changes."""
    draft.fc.weight = draft.fc.weight * 1e5


def test_a_draft_that_overflows() -> None:
    """What float16 does to a draft; bfloat16 has the range of float32."""
    narrow, wide = random_draft(draft_config()), random_draft(draft_config())
    for draft in (narrow, wide):
        outliers(draft)
    with pytest.raises(UnsupportedError, match=r"overflows in float16; use --dtype float32"):
        check_draft(small_target(), in_dtype(narrow, mx.float16), PROMPT, "d", never)
    assert check_draft(small_target(), in_dtype(wide, mx.bfloat16), PROMPT, "d", never)


def test_a_target_that_overflows() -> None:
    model = build("llama")
    model.layers[1].mlp.down_proj.weight = model.layers[1].mlp.down_proj.weight * 1e6
    draft = random_draft(draft_config())
    assert check_draft(target_for(model, (0, 2)), draft, PROMPT, "d", never)
    model.set_dtype(mx.float16)
    message = r"behind layer 2 overflow in float16.*use --dtype bfloat16, or --no-draft"
    with pytest.raises(UnsupportedError, match=message):
        check_draft(target_for(model, (0, 2)), draft, PROMPT, "d", never)


def negated(draft: DFlashDraft) -> None:
    """Spoil the quantised form: the sublayers' outputs change their sign."""
    for layer in draft.layers:
        for linear in (layer.mlp.down_proj, layer.self_attn.o_proj):
            linear.scales, linear.biases = -linear.scales, -linear.biases


@pytest.mark.parametrize(
    ("bits", "way"),
    [(4, "use --draft-bits 8, or leave it out"), (8, "leave out --draft-bits")],
)
def test_a_quantised_draft_that_proposes_other_tokens(bits: int, way: str) -> None:
    draft = in_bits(bits)
    negated(draft)
    message = rf"the draft d quantised to {bits} bits proposes \d+ of 35 tokens.*35%.*{way}"
    with pytest.raises(UnsupportedError, match=message):
        check_draft(wide_target(), draft.prepare(), PROMPT, "d", lively, bits)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_damaged_weights(dtype: mx.Dtype) -> None:
    draft = random_draft(draft_config())
    draft.layers[1].mlp.up_proj.weight[3, 4] = mx.nan
    with pytest.raises(DFlashError) as raised:
        check_draft(small_target(), in_dtype(draft, dtype), PROMPT, "d", never)
    assert isinstance(raised.value, CheckpointError)
    assert "the draft d computes infinities or NaN even in float32" in str(raised.value)


@pytest.mark.parametrize("length", [2, 3, 17])
def test_short_prompts(length: int) -> None:
    draft = in_dtype(random_draft(draft_config()), mx.bfloat16)
    assert check_draft(small_target(), draft, PROMPT[:length], "d", never).rows >= 7


# While loading


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[str, str]:
    """Folders of a target and of a draft with a weight that is not a number."""
    target, draft = write_target(tmp_path / "target"), write_draft(tmp_path / "draft")
    weights = dict(mx.load(str(draft / "model.safetensors")))
    weights["fc.weight"][0, 0] = mx.inf
    mx.save_safetensors(str(draft / "model.safetensors"), weights)
    return str(target), str(draft)


def test_loading_refuses(damaged: tuple[str, str]) -> None:
    with pytest.raises(CheckpointError, match=r"draft.* computes infinities or NaN"):
        load(*damaged, quiet=True)


def test_loading_in_spite_of_it(damaged: tuple[str, str]) -> None:
    pair = load(*damaged, check=False, quiet=True)
    assert pair.draft is not None


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"draft_bits": 4}, {"draft_bits": 8}, {"dtype": "bfloat16"}])
def test_the_embedded_draft_passes(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Agreement] = []
    check: Callable[..., Agreement] = check_draft

    def noted(*args: Any) -> Agreement:
        found.append(check(*args))
        return found[-1]

    monkeypatch.setattr("dflash_mlx.loading.check_draft", noted)
    load(quiet=True, **how)
    # The figures that justify `FLOOR`.
    assert found[0].share > (0.4 if how.get("draft_bits") == 4 else 0.85)
