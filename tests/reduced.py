"""Reduced configurations of the real architectures, as their config.json would have them.

Plain data and mlx-lm alone, so that other implementations can be run on the same models.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from importlib import import_module
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path

VOCAB = 64
WINDOW = 16
HIDDEN = 48
LAYERS = 4
INDEX_TOPK = 8

FULL = "full_attention"
SLIDING = "sliding_attention"

COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED_EXPERT = {"shared_expert_intermediate_size": 32, "norm_topk_prob": True}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "head_dim": 16,
}
MROPE = {
    "rope_type": "default",
    "mrope_section": [1, 1, 0],
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
}
LATENT_ATTENTION = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 28,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "attention_bias": False,
}
# Sigmoid scores with a shared expert, the first layer dense.
ROUTED_EXPERTS = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
}
KIMI_YARN = {
    "type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def _of(kind: str, **more: Any) -> dict[str, Any]:
    return {"model_type": kind, **COMMON} | more


def _inside(kind: str, text: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model_type": kind, "text_config": text, **more}


def _gemma(kind: str = "gemma4", **more: Any) -> dict[str, Any]:
    text = {
        "num_hidden_layers": 6,
        "layer_types": [SLIDING, SLIDING, FULL] * 2,
        "sliding_window": WINDOW,
        "head_dim": 12,
        "global_head_dim": 16,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCAB,
        "use_double_wide_mlp": False,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    }
    return _inside(kind, _of("gemma4_text", **text | more), vocab_size=VOCAB)


CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _of("llama", rope_scaling=LLAMA3_ROPE),
    "llama-tied": _of("llama", tie_word_embeddings=True),
    "llama-sliding": _of(
        "llama",
        tie_word_embeddings=True,
        layer_types=[FULL, SLIDING, SLIDING, FULL],
        sliding_window=WINDOW,
    ),
    "qwen3": _of("qwen3", head_dim=16),
    "qwen3_moe": _of(
        "qwen3_moe",
        head_dim=16,
        decoder_sparse_step=1,
        mlp_only_layers=[1],
        norm_topk_prob=True,
        **EXPERTS,
    ),
    "qwen3_next": _of(
        "qwen3_next",
        partial_rotary_factor=0.25,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        **EXPERTS,
        **SHARED_EXPERT,
        **DELTA,
    ),
    "qwen3_5": _inside(
        "qwen3_5", _of("qwen3_5_text", rope_parameters=MROPE, **DELTA), vocab_size=VOCAB
    ),
    "qwen3_5-tied": _inside(
        "qwen3_5",
        _of("qwen3_5_text", rope_parameters=MROPE, **DELTA) | {"tie_word_embeddings": True},
    ),
    "qwen3_5_moe": _inside(
        "qwen3_5_moe",
        _of("qwen3_5_moe_text", rope_parameters=MROPE, **EXPERTS, **SHARED_EXPERT, **DELTA),
    ),
    "deepseek_v3": _of(
        "deepseek_v3",
        **LATENT_ATTENTION
        | ROUTED_EXPERTS
        | {"q_lora_rank": None, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 2},
    ),
    "kimi_k25": _inside(
        "kimi_k25",
        _of(
            "kimi_k2",
            rope_scaling=KIMI_YARN,
            **LATENT_ATTENTION | ROUTED_EXPERTS | {"routed_scaling_factor": 2.827},
        ),
    ),
    "glm4_moe_lite": _of("glm4_moe_lite", **LATENT_ATTENTION, **ROUTED_EXPERTS),
    "glm_moe_dsa": _of(
        "glm_moe_dsa",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        index_head_dim=8,
        index_n_heads=4,
        index_topk=INDEX_TOPK,
        indexer_rope_interleave=True,
        **LATENT_ATTENTION,
        **ROUTED_EXPERTS,
    ),
    "gpt_oss": _of(
        "gpt_oss",
        head_dim=16,
        attention_bias=True,
        layer_types=[SLIDING, FULL] * 2,
        sliding_window=WINDOW,
        num_local_experts=8,
        num_experts_per_tok=2,
        rope_scaling=YARN,
    ),
    "gemma4": _gemma(attention_k_eq_v=True, num_global_key_value_heads=1),
    "gemma4-unified": _gemma("gemma4_unified"),
    "gemma4-moe": _gemma(
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        enable_moe_block=True,
        num_experts=8,
        top_k_experts=2,
        moe_intermediate_size=32,
    ),
    "gemma4-shared": _gemma(
        num_kv_shared_layers=3, hidden_size_per_layer_input=8, use_double_wide_mlp=True
    ),
    "minimax_m2": _of(
        "minimax_m2",
        head_dim=16,
        rotary_dim=8,
        use_qk_norm=True,
        scoring_func="sigmoid",
        num_local_experts=8,
        num_experts_per_tok=2,
        shared_intermediate_size=0,
    ),
    "muse_glimmer": _inside(
        "muse_glimmer",
        _of(
            "muse_glimmer_text",
            head_dim=16,
            layer_types=[SLIDING] * 3 + [FULL],
            sliding_window=WINDOW,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            output_multiplier=0.196,
            final_logit_softcapping=2.0,
        ),
    ),
    "qwen2": _of("qwen2"),
    "glm4": _of("glm4", head_dim=16, attention_bias=True, partial_rotary_factor=0.5),
    "glm4_moe": _of(
        "glm4_moe",
        head_dim=16,
        attention_bias=True,
        partial_rotary_factor=0.5,
        rope_scaling=None,
        use_qk_norm=True,
        **ROUTED_EXPERTS,
    ),
}


@cache
def language_model(family: str) -> Any:
    """A float32 model with random weights, the same in every call."""
    model = build(family)
    mx.eval(model.parameters())
    return model


def build(family: str) -> Any:
    """As `language_model`, but a new one."""
    config = CONFIGS[family]
    return make(config, MODULES.get(family, config["model_type"]))


def make(config: dict[str, Any], name: str) -> Any:
    """A model of a config by the module `name` of mlx-lm, the same in every call."""
    module = import_module(f"mlx_lm.models.{name}")
    mx.random.seed(7)
    model = module.Model(module.ModelArgs.from_dict(deepcopy(config)))
    # The default scale gives flat logits and text of one token; this one varies.
    model.update(_scaled(model.parameters(), 3.0))
    for end, (mean, spread) in DRAWN.get(name, {}).items():
        model.update(tree_map_with_path(_drawn(end, mean, spread), model.parameters()))
    model.eval()
    return model


# Where mlx-lm's module is not named as the model type.
MODULES = {"gemma4-unified": "gemma4", "minimax_m2": "minimax"}

# Per module, what is drawn anew, by the end of its name: mean and spread. Vectors that start as
# zeros or ones would hide a target that forgets them; Gemma, being tied, would repeat one token.
DRAWN = {
    "gpt_oss": {"sinks": (0.0, 2.0)},
    "gemma4": {
        "embed_tokens.weight": (0.0, 0.15),
        "post_attention_layernorm.weight": (2.0, 0.4),
        "post_feedforward_layernorm.weight": (2.0, 0.4),
        "layer_scalar": (0.8, 0.1),
        "per_expert_scale": (1.0, 0.3),
    },
    "deepseek_v3": {"e_score_correction_bias": (0.0, 0.3)},
    "glm4_moe_lite": {"e_score_correction_bias": (0.0, 0.3)},
    "glm_moe_dsa": {"e_score_correction_bias": (0.0, 0.3)},
    "kimi_k25": {"e_score_correction_bias": (0.0, 0.3)},
    "minimax": {"e_score_correction_bias": (0.0, 0.3)},
}


def _drawn(end: str, mean: float, spread: float) -> Callable[[str, mx.array], mx.array]:
    def draw(path: str, old: mx.array) -> mx.array:
        return mean + spread * mx.random.normal(old.shape) if path.endswith(end) else old

    return draw


def _scaled(tree: Any, factor: float) -> Any:
    if isinstance(tree, dict):
        return {k: _scaled(v, factor) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_scaled(v, factor) for v in tree]
    if tree.ndim < 2:
        return tree
    # Some routers start at zero, and would send every token to the same experts.
    return tree * factor if tree.any().item() else mx.random.normal(tree.shape, scale=0.3)
