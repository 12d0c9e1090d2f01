"""Every spelling of a draft's config.json, and every mistake in one."""

import json
from pathlib import Path
from typing import Any

import pytest

from dflash_mlx.config import FULL, SLIDING, DFlash2, DraftConfig
from dflash_mlx.embedded import embedded_draft
from dflash_mlx.errors import CheckpointError, UnsupportedError
from dflash_mlx.rope import Rope

from .families import draft_config

# As z-lab/Qwen3-4B-DFlash-b16 is laid out: block size and rope theta at the top.
OLD: dict[str, Any] = {
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "hidden_size": 2560,
    "num_hidden_layers": 5,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "max_position_embeddings": 40960,
    "attention_bias": False,
    "num_target_layers": 36,
    "block_size": 16,
    "sliding_window": None,
    "use_sliding_window": False,
    "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]},
}
# As the retrained drafts of June 2026 are: both moved into objects of their own.
NEW: dict[str, Any] = {
    **{k: v for k, v in OLD.items() if k not in ("rope_theta", "rope_scaling", "block_size")},
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000},
    "num_hidden_layers": 6,
    "layer_types": [SLIDING] * 5 + [FULL],
    "sliding_window": 4096,
    "dflash_config": {**OLD["dflash_config"], "block_size": 16, "mask_token_id": 248077},
}
# As z-lab/Muse-Glimmer-30B-DFlash2 is.
SECOND: dict[str, Any] = {
    **NEW,
    "architectures": ["DFlash2DraftModel"],
    "is_causal": False,
    "hidden_size": 6656,
    "num_hidden_layers": 5,
    "layer_types": [SLIDING] * 5,
    "sliding_window": 2048,
    "use_sliding_window": True,
    "max_window_layers": 5,
    "dflash_config": {
        "block_size": 16,
        "conv_group_size": 16,
        "conv_kernel_size": 2,
        "final_logit_softcapping": 20.0,
        "mask_token_id": 201818,
        "output_multiplier": 0.19611613513818404,
        "selector_rank": 256,
        "selector_top_k": 16,
        "target_layer_ids": [1, 13, 25, 37, 49],
    },
}


def read(raw: dict[str, Any]) -> DraftConfig:
    return DraftConfig.from_dict(raw, "config.json")


def inner(raw: dict[str, Any] = OLD, **changes: Any) -> dict[str, Any]:
    return {**raw, "dflash_config": {**raw["dflash_config"], **changes}}


def test_the_old_layout() -> None:
    config = read(OLD)
    assert (config.block_size, config.mask_token_id, config.taps) == (
        16,
        151669,
        (1, 9, 17, 25, 33),
    )
    assert config.rope == Rope("default", 1e6)
    assert config.windows == (None,) * 5
    assert config.causal == (False,) * 5


def test_the_new_layout() -> None:
    config = read(NEW)
    assert config.block_size == 16
    assert config.rope == Rope("default", 1e7)
    assert config.windows == (4096,) * 5 + (None,)
    # The reference rule where is_causal is not stated: sliding layers are causal.
    assert config.causal == (True,) * 5 + (False,)


@pytest.mark.parametrize(
    ("raw", "causal"),
    [
        ({**NEW, "is_causal": False}, False),
        ({**NEW, "is_causal": True}, True),
        ({**NEW, "dflash_config": {**NEW["dflash_config"], "causal": False}}, False),
    ],
)
def test_stated_causality_holds_for_every_layer(raw: dict[str, Any], causal: bool) -> None:
    assert read(raw).causal == (causal,) * 6


def test_defaults_where_nothing_is_stated() -> None:
    raw = {k: v for k, v in OLD.items() if k not in ("block_size", "rope_theta", "layer_types")}
    config = read(raw)
    assert (config.block_size, config.rope.theta) == (16, 10000.0)
    assert config.output_multiplier == 1.0
    assert config.final_logit_softcapping is None


def test_scales_in_either_place() -> None:
    assert read(inner(output_multiplier=0.2)).output_multiplier == 0.2
    assert read({**OLD, "final_logit_softcapping": 30}).final_logit_softcapping == 30.0


def test_dflash_2() -> None:
    config = read(SECOND)
    assert config.dflash2 == DFlash2(2, 16, 256, 16)
    assert config.causal == (False,) * 5
    assert config.windows == (2048,) * 5
    assert (config.block_size, config.mask_token_id) == (16, 201818)
    assert (config.output_multiplier, config.final_logit_softcapping) == (0.19611613513818404, 20)
    assert read(OLD).dflash2 is None


@pytest.mark.parametrize("layers", [4, 5, 6, 8])
@pytest.mark.parametrize("taps", [1, 5, 6, 8])
def test_any_number_of_layers_and_taps(layers: int, taps: int) -> None:
    raw = inner(target_layer_ids=list(range(1, 1 + taps)))
    config = read({**raw, "num_hidden_layers": layers})
    assert (config.num_layers, len(config.taps), len(config.layer_types)) == (layers, taps, layers)


def test_small_heads_with_biases() -> None:
    config = read({**OLD, "attention_bias": True, "head_dim": 64, "num_attention_heads": 64})
    assert (config.attention_bias, config.head_dim) == (True, 64)


def test_the_embedded_draft() -> None:
    path = Path(embedded_draft()) / "config.json"
    config = DraftConfig.from_dict(json.loads(path.read_text()), "embedded")
    assert (config.num_layers, config.block_size, config.mask_token_id) == (3, 4, 16)
    assert config.taps == (1, 8, 15, 22, 28)


REQUIRED = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "rms_norm_eps",
    "max_position_embeddings",
]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: the field '{name}' is missing"):
        read({k: v for k, v in OLD.items() if k != name})


@pytest.mark.parametrize("name", REQUIRED)
def test_a_field_of_the_wrong_type(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name} is '5', expected a"):
        read({**OLD, name: "5"})
    with pytest.raises(CheckpointError, match=rf"{name} is -1(\.0)?, expected a positive"):
        read({**OLD, name: -1})


def test_a_selector_without_convolutions() -> None:
    raw = inner(SECOND, conv_kernel_size=0, conv_group_size=None)
    assert read(raw).dflash2 == DFlash2(0, 1, selector_rank=256, selector_top_k=16)
    with pytest.raises(CheckpointError, match="conv_kernel_size is -1"):
        read(inner(SECOND, conv_kernel_size=-1))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (inner(target_layer_ids=None), "the field 'target_layer_ids' is missing"),
        (inner(target_layer_ids=[]), "expected a list of layer numbers"),
        (inner(target_layer_ids=[1, "2"]), "expected a list of layer numbers"),
        (inner(target_layer_ids=[5, 1]), "expected ascending"),
        (inner(target_layer_ids=[-1, 1]), "expected ascending"),
        (inner(mask_token_id=None), "the field 'mask_token_id' is missing"),
        (inner(block_size=1), "block_size is 1, expected 2 to 64"),
        (inner(block_size=True), "block_size is True"),
        ({**OLD, "num_key_value_heads": 5}, "expected a divisor of 32 heads"),
        ({**NEW, "layer_types": [FULL]}, "expected 6 entries"),
        ({**NEW, "sliding_window": None}, "the field 'sliding_window' is missing"),
        ({**NEW, "is_causal": "no"}, "is_causal is 'no', expected a bool"),
        (inner(SECOND, selector_rank=None), "the field 'selector_rank' is missing"),
        ({**SECOND, "hidden_size": 6650}, "conv_group_size is 16, expected a divisor of"),
    ],
)
def test_mistakes_are_named(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({**OLD, "architectures": ["DSparkDraftModel"]}, r"architectures is \['DSpark"),
        ({k: v for k, v in OLD.items() if k != "dflash_config"}, "is no DFlash draft"),
        ({**NEW, "layer_types": ["chunked"] * 6}, "unknown layer types"),
    ],
)
def test_kinds_we_do_not_run(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read(raw)


SCALES = [(7.0, 7.02, 1), (1, 7, 1), (3, 7, 3), (2, 1, 2)]


@pytest.mark.parametrize(("stated", "scale", "applied"), SCALES)
def test_a_scale_that_the_target_applies_itself(
    stated: float, scale: float, applied: float
) -> None:
    """Gemma's drafts: the published implementations differ in who scales the embeddings."""
    config = draft_config(input_embedding_scale=stated)
    assert config.on_scaled_embeddings(scale).input_embedding_scale == applied
