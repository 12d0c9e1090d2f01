"""What the published config.json files say, as far as sizes depend on it."""

from __future__ import annotations

from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"


def _qwen3(hidden: int, layers: int, kv_heads: int, wide: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen3_moe" if more.get("num_experts") else "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": wide,
        "num_attention_heads": 32,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": False,
        **more,
    }


def _delta(hidden: int, layers: int, heads: int, kv_heads: int, value_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 256,
        "linear_num_value_heads": value_heads,
        "linear_num_key_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4,
        "vocab_size": 248320,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 262144,
        "tie_word_embeddings": False,
    }


def _qwen35(*sizes: int, **more: Any) -> dict[str, Any]:
    layers = (["linear_attention"] * 3 + [FULL]) * (sizes[1] // 4)
    rope = {"type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
    text = _delta(*sizes) | {"layer_types": layers, "rope_parameters": rope} | more
    kind = "qwen3_5_moe" if more.get("num_experts") else "qwen3_5"
    return {"model_type": kind, "text_config": {"model_type": f"{kind}_text", **text}}


def _experts(count: int, chosen: int, wide: int) -> dict[str, Any]:
    return {
        "num_experts": count,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": wide,
        "shared_expert_intermediate_size": wide,
        "norm_topk_prob": True,
    }


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_oss",
        "num_hidden_layers": layers,
        "num_local_experts": experts,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "sliding_window": 128,
        "layer_types": [SLIDING, FULL] * (layers // 2),
    }


def _gemma(
    kind: str, hidden: int, layers: int, heads: tuple[int, int, int], wide: int, **more: Any
) -> dict[str, Any]:
    text = {
        "model_type": "gemma4_text",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": wide,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "num_global_key_value_heads": heads[2],
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": 1024,
        "layer_types": ([SLIDING] * 5 + [FULL]) * (layers // 6),
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "use_double_wide_mlp": False,
        "tie_word_embeddings": True,
        **more,
    }
    return {"model_type": kind, "text_config": text}


LATENT = {
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "n_shared_experts": 1,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_experts_per_tok": 8,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "moe_layer_freq": 1,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
}
KIMI = {
    "model_type": "kimi_k25",
    "text_config": LATENT
    | {
        "model_type": "kimi_k2",
        "vocab_size": 163840,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 61,
        "n_routed_experts": 384,
        "routed_scaling_factor": 2.827,
        "q_lora_rank": 1536,
        "v_head_dim": 128,
        "qk_nope_head_dim": 128,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 262144,
        "rope_theta": 5e4,
        "rope_scaling": None,
    },
}
GLM = LATENT | {
    "model_type": "glm_moe_dsa",
    "vocab_size": 154880,
    "hidden_size": 6144,
    "index_head_dim": 128,
    "index_n_heads": 32,
    "index_topk": 2048,
    "intermediate_size": 12288,
    "num_hidden_layers": 78,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 2048,
    "v_head_dim": 256,
    "qk_nope_head_dim": 192,
    "first_k_dense_replace": 3,
    "max_position_embeddings": 202752,
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
}
MINIMAX = {
    "model_type": "minimax_m2",
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_experts_per_tok": 8,
    "num_local_experts": 256,
    "shared_intermediate_size": 0,
    "num_hidden_layers": 62,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5e6,
    "rotary_dim": 64,
    "vocab_size": 200064,
    "max_position_embeddings": 196608,
}
MUSE = {
    "model_type": "muse_glimmer",
    "hidden_size": 6656,
    "num_hidden_layers": 52,
    "intermediate_size": 19968,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 202048,
    "sliding_window": 2048,
    "layer_types": ([SLIDING] * 3 + [FULL]) * 13,
    "tie_word_embeddings": False,
}
LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5}
CODER = _experts(128, 8, 768) | {"decoder_sparse_step": 1, "mlp_only_layers": []}
NEXT = _experts(512, 10, 512) | {
    "model_type": "qwen3_next",
    "intermediate_size": 5120,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 151936,
    "rope_theta": 5e6,
    "partial_rotary_factor": 0.25,
}
Q27B = _qwen35(5120, 64, 24, 4, 48, intermediate_size=17408)
Q35B = _qwen35(2048, 40, 16, 2, 32, **_experts(256, 8, 512))

TARGETS: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": LLAMA
    | {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-4B": _qwen3(2560, 36, 8, 9728, tie_word_embeddings=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 36, 8, 12288),
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": _qwen3(2048, 48, 4, 5472, **CODER),
    "Qwen/Qwen3-Coder-Next": _delta(2048, 48, 16, 2, 32) | NEXT,
    "Qwen/Qwen3.5-4B": _qwen35(
        2560, 32, 16, 4, 32, intermediate_size=9216, tie_word_embeddings=True
    ),
    "Qwen/Qwen3.5-9B": _qwen35(4096, 32, 16, 4, 32, intermediate_size=12288),
    "Qwen/Qwen3.5-27B": Q27B,
    "Qwen/Qwen3.5-35B-A3B": Q35B,
    "Qwen/Qwen3.5-122B-A10B": _qwen35(3072, 48, 32, 2, 64, **_experts(256, 8, 1024)),
    "Qwen/Qwen3.5-397B-A17B": _qwen35(4096, 60, 32, 2, 64, **_experts(512, 10, 1024)),
    "Qwen/Qwen3.6-27B": Q27B,
    "Qwen/Qwen3.6-35B-A3B": Q35B,
    "Qwen/Qwen3.8-27B": Q27B,
    "openai/gpt-oss-20b": _gpt_oss(24, 32),
    "openai/gpt-oss-120b": _gpt_oss(36, 128),
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA
    | {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "google/gemma-4-12B-it": _gemma("gemma4_unified", 3840, 48, (16, 8, 1), 15360),
    "google/gemma-4-26B-A4B-it": _gemma(
        "gemma4",
        2816,
        30,
        (16, 8, 2),
        2112,
        enable_moe_block=True,
        num_experts=128,
        top_k_experts=8,
        moe_intermediate_size=704,
    ),
    "google/gemma-4-31B-it": _gemma("gemma4", 5376, 60, (32, 16, 4), 21504),
    "meta-models/Muse-Glimmer-30B": MUSE,
    "MiniMaxAI/MiniMax-M2.5": MINIMAX,
    "MiniMaxAI/MiniMax-M2.7": MINIMAX,
    "moonshotai/Kimi-K2.5": KIMI,
    "moonshotai/Kimi-K2.6": KIMI,
    "zai-org/GLM-5.1-FP8": GLM,
}


def _draft(
    hidden: int,
    wide: int,
    layers: int,
    taps: int,
    block: int,
    heads: tuple[int, int, int] = (32, 8, 128),
    sliding: int = 0,
    window: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    kinds = [SLIDING] * sliding + [FULL] * (layers - sliding)
    return {
        "architectures": ["DFlashDraftModel"],
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "layer_types": kinds,
        "sliding_window": window,
        "vocab_size": 1024,  # a DFlash 1 draft has nothing of that size
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 4096,
        "dflash_config": {
            "block_size": block,
            "mask_token_id": 1,
            "target_layer_ids": list(range(taps)),
        },
        **more,
    }


DFLASH2 = {
    "architectures": ["DFlash2DraftModel"],
    "is_causal": False,
    "conv_kernel_size": 2,
    "conv_group_size": 16,
    "selector_rank": 256,
    "selector_top_k": 16,
}
JUNE: dict[str, Any] = {"sliding": 5, "window": 4096}
OSS = (64, 8, 64)
DRAFTS: dict[str, dict[str, Any]] = {
    "z-lab/Qwen3-4B-DFlash-b16": _draft(2560, 9728, 5, 5, 16),
    "z-lab/Qwen3-8B-DFlash-b16": _draft(4096, 12288, 5, 5, 16),
    "z-lab/Qwen3-Coder-30B-A3B-DFlash": _draft(2048, 6144, 8, 5, 16, (32, 4, 128)),
    "z-lab/Qwen3-Coder-Next-DFlash": _draft(2048, 6144, 8, 5, 16, (32, 4, 128)),
    "z-lab/Qwen3.5-4B-DFlash": _draft(2560, 9216, 6, 8, 16, **JUNE),
    "z-lab/Qwen3.5-9B-DFlash": _draft(4096, 12288, 6, 8, 16, **JUNE),
    "z-lab/Qwen3.5-27B-DFlash": _draft(5120, 17408, 6, 8, 16, **JUNE),
    "z-lab/Qwen3.5-35B-A3B-DFlash": _draft(2048, 6144, 6, 8, 16, **JUNE),
    "z-lab/Qwen3.5-122B-A10B-DFlash": _draft(3072, 9216, 6, 8, 16, **JUNE),
    "z-lab/Qwen3.5-397B-A17B-DFlash": _draft(4096, 12288, 6, 8, 16),
    "z-lab/Qwen3.6-27B-DFlash": _draft(5120, 17408, 5, 5, 16, sliding=4, window=2048),
    "z-lab/Qwen3.6-35B-A3B-DFlash": _draft(2048, 6144, 6, 8, 16, **JUNE),
    "incoai/Qwen3.6-35B-A3B-DFlash2": _draft(
        2048, 6144, 6, 8, 8, sliding=6, window=2048, **DFLASH2 | {"vocab_size": 248320}
    ),
    "z-lab/Qwen3.8-27B-DFlash2": _draft(
        5120, 17408, 5, 5, 8, sliding=5, window=2048, **DFLASH2 | {"vocab_size": 248320}
    ),
    "z-lab/gpt-oss-20b-DFlash": _draft(2880, 7680, 8, 5, 8, OSS, attention_bias=True),
    "z-lab/gpt-oss-120b-DFlash": _draft(2880, 7680, 8, 5, 10, OSS, attention_bias=True),
    "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat": _draft(4096, 12288, 5, 5, 10),
    "z-lab/gemma-4-26B-A4B-it-DFlash": _draft(2816, 5632, 5, 6, 16, sliding=4, window=2048),
    "z-lab/gemma-4-31B-it-DFlash": _draft(
        5376, 10752, 5, 6, 16, (64, 8, 128), sliding=4, window=2048
    ),
    "z-lab/Muse-Glimmer-30B-DFlash2": _draft(
        6656, 19968, 5, 5, 16, sliding=5, window=2048, **DFLASH2 | {"vocab_size": 202048}
    ),
    "z-lab/Kimi-K2.5-DFlash": _draft(7168, 18432, 6, 6, 8, (64, 8, 128)),
    "z-lab/Kimi-K2.6-DFlash": _draft(7168, 18432, 6, 6, 8, (64, 8, 128)),
}
# GiB of their files as the hub shows them.
DRAFT_GIB = {
    "z-lab/Qwen3-4B-DFlash-b16": 1.00,
    "z-lab/Qwen3-8B-DFlash-b16": 1.95,
    "z-lab/Qwen3-Coder-30B-A3B-DFlash": 0.88,
    "z-lab/Qwen3-Coder-Next-DFlash": 0.88,
    "z-lab/Qwen3.5-4B-DFlash": 1.18,
    "z-lab/Qwen3.5-9B-DFlash": 2.41,
    "z-lab/Qwen3.5-27B-DFlash": 3.96,
    "z-lab/Qwen3.5-35B-A3B-DFlash": 0.72,
    "z-lab/Qwen3.5-122B-A10B-DFlash": 1.44,
    "z-lab/Qwen3.5-397B-A17B-DFlash": 2.41,
    "z-lab/Qwen3.6-27B-DFlash": 3.22,
    "z-lab/Qwen3.6-35B-A3B-DFlash": 0.72,
    "z-lab/Qwen3.8-27B-DFlash2": 3.58,
    "z-lab/gpt-oss-20b-DFlash": 1.46,
    "z-lab/gpt-oss-120b-DFlash": 1.46,
    "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat": 1.95,
    "z-lab/gemma-4-26B-A4B-it-DFlash": 0.80,
    "z-lab/gemma-4-31B-it-DFlash": 2.86,
    "z-lab/Muse-Glimmer-30B-DFlash2": 5.16,
    "z-lab/MiniMax-M2.5-DFlash": 3.33,
    "z-lab/MiniMax-M2.7-DFlash": 1.04,
    "z-lab/Kimi-K2.5-DFlash": 6.48,
    "z-lab/Kimi-K2.6-DFlash": 6.48,
}
