"""What a config.json says about the rotary embedding."""

from dataclasses import replace
from typing import Any

import pytest

from dflash_mlx.errors import CheckpointError, UnsupportedError
from dflash_mlx.rope import Rope

from .test_config import NEW, OLD, read

KIMI_ROPE = {
    "type": "yarn",
    "factor": 64.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


@pytest.mark.parametrize(
    ("changes", "amplitude"),
    [
        ({}, 1.0),  # mscale and mscale_all_dim stated: their ratio
        ({"mscale": None}, 1.4158883083359672),  # 0.1 ln 64 + 1
        ({"attention_factor": 1.4159}, 1.4159),  # stated: it decides
    ],
)
def test_yarn_amplitude(changes: dict[str, Any], amplitude: float) -> None:
    rope = read({**OLD, "rope_scaling": {**KIMI_ROPE, **changes}}).rope
    assert (rope.kind, rope.factor) == ("yarn", 64.0)
    assert rope.attention_factor == pytest.approx(amplitude)


def test_the_rest_of_yarn() -> None:
    rope = read({**OLD, "rope_scaling": KIMI_ROPE}).rope
    assert (rope.original_max_position, rope.beta_fast, rope.beta_slow) == (4096, 32.0, 1.0)
    assert rope.truncate
    stated = {**KIMI_ROPE, "truncate": False, "beta_fast": 16, "beta_slow": 2}
    assert read({**OLD, "rope_scaling": stated}).rope == replace(
        rope, truncate=False, beta_fast=16.0, beta_slow=2.0
    )


def test_the_rope_of_llama_3() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    rope = read({**OLD, "rope_scaling": scaling}).rope
    assert rope == Rope("llama3", 1e6, 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)


@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling"])
def test_theta_inside_rope(place: str) -> None:
    raw = {k: v for k, v in OLD.items() if k not in ("rope_theta", "rope_scaling")}
    raw[place] = {**KIMI_ROPE, "rope_theta": 50000}
    assert read(raw).rope.theta == 50000.0
    assert read({**raw, "rope_theta": 7}).rope.theta == 7.0


def test_a_rotation_of_half_the_head_is_refused() -> None:
    nested = {"rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 0.25}}
    for raw in ({**OLD, "partial_rotary_factor": 0.5}, {**NEW, **nested}):
        with pytest.raises(UnsupportedError, match=r"partial_rotary_factor is 0\.\d+; only"):
            read(raw)


def test_a_rope_per_layer_type_is_refused() -> None:
    both = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.raises(UnsupportedError, match="rope differs by layer type"):
        read({**NEW, "rope_parameters": both})


def test_mistakes_are_named() -> None:
    with pytest.raises(CheckpointError, match="'original_max_position_embeddings' is missing"):
        read({**OLD, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}})
    with pytest.raises(UnsupportedError, match="rope type 'longrope'"):
        read({**OLD, "rope_scaling": {"rope_type": "longrope"}})
