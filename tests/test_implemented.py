"""Fields of other programs' drafts: refused by name where they would change the result."""

from typing import Any

import pytest

from dflash_mlx.errors import UnsupportedError

from .test_config import NEW, OLD, SECOND, inner, read

# What transformers writes into every config and other programs add to it.
HARMLESS: dict[str, Any] = {
    "attention_dropout": 0.0,
    "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
    "bos_token_id": None,
    "dtype": "bfloat16",
    "eos_token_id": 248044,
    "hidden_act": "silu",
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "max_window_layers": 5,
    "model_type": "gpt_oss",
    "pad_token_id": 248044,
    "tie_word_embeddings": True,
    "transformers_version": "5.15.0",
    "use_cache": False,
    "v_head_dim": 128,
    "draft_vocab_size": 151936,
    "target_hidden_size": 2560,
    "partial_rotary_factor": 1.0,
}


@pytest.mark.parametrize("raw", [OLD, NEW, SECOND], ids=["old", "new", "DFlash 2"])
def test_fields_that_change_nothing(raw: dict[str, Any]) -> None:
    more = {**HARMLESS, "target_hidden_size": raw["hidden_size"]}
    training = {"num_anchors": 512, "loss_decay_gamma": 7.0, "attention_sink_bias": False}
    training |= {"sample_from_anchor": None, "projector_type": "dflash", "attention_mode": "gqa"}
    plain = read(raw)
    raw = {**raw, "dflash_config": {**raw["dflash_config"], **training}}
    assert read({**more, **raw}) == plain


# Each is from a draft that some other program runs.
FOREIGN: dict[str, Any] = {
    "attention_mode": "mla",
    "attention_sink_bias": True,
    "attention_value_scale": 0.612,
    "fc_norm": True,
    "projector_type": "dspark",
    "sample_from_anchor": True,
    "sliding_window_non_causal": True,
    "use_swa": True,
    "target_hidden_size": 4096,
    "v_head_dim": 64,
    "hidden_act": "gelu",
    "value_scale": 0.5,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_fields_that_would_change_the_result_are_refused_by_name(name: str) -> None:
    value = FOREIGN[name]
    for raw in ({**OLD, name: value}, inner(**{name: value})):
        with pytest.raises(UnsupportedError, match=f"{name} is {value!r}, which is not impl"):
            read(raw)


def test_what_nobody_knows_is_refused_in_dflash_config_only() -> None:
    with pytest.raises(UnsupportedError, match=r"dflash_config: markov_rank is 256, which is not"):
        read(inner(markov_rank=256))
    assert read({**OLD, "markov_rank": 256}) == read(OLD)


def test_sliding_layers_must_be_listed() -> None:
    raw = {**OLD, "use_sliding_window": True, "sliding_window": 4096}
    assert read({**raw, "max_window_layers": 5}).windows == (None,) * 5
    with pytest.raises(UnsupportedError, match="layer_types is missing"):
        read({**raw, "max_window_layers": 3})
