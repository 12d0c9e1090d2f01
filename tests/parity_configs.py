"""One config.json per family of published drafts, reduced in width alone.

Layers, taps, the number of queries per key, head sizes, biases, layer types, rope, block sizes
and the places where a config states them are as published; widths, vocabulary and windows are
small. Where a published config could not be read in full, the family's other drafts fill it in.
"""

from typing import Any

from dflash_mlx.config import FULL, SLIDING

VOCAB = 320
HIDDEN = 64
WINDOW = 40
GPT_OSS_YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
# Both amplitudes stated: their ratio counts, which is 1 (see `Rope`).
KIMI_YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 64.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "rope_type": "yarn",
    "type": "yarn",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SELECTOR = {
    "conv_group_size": 16,
    "conv_kernel_size": 2,
    "selector_rank": 32,
    "selector_top_k": 16,
}


def _base(layers: int, heads: tuple[int, int, int], taps: list[int], **more: Any) -> dict[str, Any]:
    """Fields as transformers writes them for every draft; heads are (query, K/V, size)."""
    return {
        "architectures": ["DFlashDraftModel"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": "float32",
        "eos_token_id": 1,
        "head_dim": heads[2],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 40960,
        "max_window_layers": layers,
        "model_type": "qwen3",
        "num_attention_heads": heads[0],
        "num_hidden_layers": layers,
        "num_key_value_heads": heads[1],
        "num_target_layers": taps[-1] + 3,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "transformers_version": "4.57.1",
        "use_cache": True,
        "vocab_size": VOCAB,
        "dflash_config": {"mask_token_id": 5, "target_layer_ids": taps},
    } | more


def early(
    layers: int, heads: tuple[int, int, int], taps: list[int], theta: float, **more: Any
) -> dict[str, Any]:
    """The layout up to May 2026: block size and theta at the top, all layers full."""
    fields: dict[str, Any] = {
        "block_size": 16,
        "layer_types": [FULL] * layers,
        "rope_scaling": None,
        "rope_theta": theta,
        "sliding_window": None,
        "use_sliding_window": False,
    }
    return _base(layers, heads, taps, **(fields | more))


def sliding(
    types: list[str], heads: tuple[int, int, int], taps: list[int], block: int, **more: Any
) -> dict[str, Any]:
    """The layout from June 2026: block size and theta inside, layers that slide."""
    config = _base(len(types), heads, taps, layer_types=types, sliding_window=WINDOW)
    config["dflash_config"] |= {"block_size": block} | more.pop("inside", {})
    config["rope_parameters"] = {"rope_theta": more.pop("theta", 1e7), "rope_type": "default"}
    return config | {"use_sliding_window": True, "max_position_embeddings": 262144} | more


def dflash2(
    layers: int, taps: list[int], block: int, inside: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A DFlash 2 draft: every layer slides and sees the whole block."""
    fields = {"architectures": ["DFlash2DraftModel"], "is_causal": False}
    return sliding(
        [SLIDING] * layers,
        (8, 2, 128),
        taps,
        block,
        inside=SELECTOR | (inside or {}),
        **fields | more,
    )


JUNE_2026 = [SLIDING] * 5 + [FULL]
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen3 4B, 8B": early(5, (8, 2, 128), [1, 9, 17, 25, 33], 1e6),
    "Qwen3.5 4B, 9B, 27B (early)": early(5, (8, 2, 128), [1, 16, 31, 46, 61], 1e7),
    "Qwen3-Coder, Qwen3.5, 3.6 35B-A3B (early)": early(8, (8, 1, 128), [1, 12, 23, 34, 45], 1e7),
    "Llama-3.1-8B": early(5, (8, 2, 128), [1, 8, 15, 22, 29], 5e5, block_size=10),
    "Llama-3.1-8B (scaled rope)": early(
        5, (8, 2, 128), [1, 8, 15, 22, 29], 5e5, block_size=10, rope_scaling=LLAMA3
    ),
    "gpt-oss-20b": early(
        8,
        (16, 2, 64),
        [1, 6, 11, 16, 21],
        150000,
        attention_bias=True,
        block_size=8,
        model_type="gpt_oss",  # as published; both loaders know better
        rms_norm_eps=1e-5,
        rope_scaling=GPT_OSS_YARN,
    ),
    "gpt-oss-120b": early(
        8,
        (16, 2, 64),
        [1, 9, 17, 25, 33],
        150000,
        attention_bias=True,
        block_size=10,
        rms_norm_eps=1e-5,
        rope_scaling=GPT_OSS_YARN | {"truncate": False},
    ),
    "Kimi-K2.5, K2.6": early(
        6, (16, 2, 128), [1, 12, 24, 35, 47, 58], 5e4, block_size=8, rope_scaling=KIMI_YARN
    ),
    "Kimi-K2.5 (amplitude 1.416)": early(
        6,
        (16, 2, 128),
        [1, 12, 24, 35, 47, 58],
        5e4,
        block_size=8,
        rope_scaling=KIMI_YARN | {"attention_factor": 1.4158883083359672},
    ),
    "Qwen3.5-122B-A10B (early)": sliding(
        [SLIDING] * 3 + [FULL], (8, 1, 128), [1, 10, 19, 28, 37, 46], 16
    ),
    "Qwen3.6-27B": sliding([SLIDING] * 4 + [FULL], (8, 2, 128), [1, 16, 31, 46, 61], 16),
    "Qwen3.5, 3.6 (June 2026)": sliding(JUNE_2026, (8, 2, 128), [1, 6, 11, 16, 22, 27, 32, 37], 16),
    "Gemma 4 31B": sliding(
        [SLIDING] * 4 + [FULL],
        (16, 2, 128),
        [1, 12, 23, 35, 46, 57],
        16,
        theta=1e6,
        final_logit_softcapping=30.0,
    ),
    "Gemma 4 26B-A4B (scaled embeddings)": sliding(
        [SLIDING] * 4 + [FULL],
        (8, 2, 128),
        [1, 6, 11, 17, 22, 27],
        16,
        inside={"final_logit_softcapping": 30.0, "input_embedding_scale": 8.0},
        theta=1e6,
    ),
    "Qwen3.8-27B (DFlash 2)": dflash2(5, [5, 19, 33, 47, 61], 8),
    "Qwen3.6-35B-A3B (DFlash 2)": dflash2(6, [1, 6, 11, 16, 22, 27, 32, 37], 8),
    "Muse-Glimmer-30B (DFlash 2)": dflash2(
        5,
        [1, 13, 25, 37, 49],
        16,
        {"final_logit_softcapping": 20.0, "output_multiplier": 0.19611613513818404},
        theta=5e5,
        rms_norm_eps=1e-5,
    ),
}
