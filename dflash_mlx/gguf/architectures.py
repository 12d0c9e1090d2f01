"""The targets that GGUFs are converted from: plain llamas and Qwens.

Besides names, two things differ from the checkpoint that a GGUF was made of. For `llama`,
llama.cpp rotates neighbouring dimensions of a head together (0 with 1) where mlx-lm rotates halves
(0 with d/2), so its converter reorders the rows of q and k; here they are put back. And the scaled
RoPE of Llama 3.1 is stored as the divisors it comes to, from which its parameters are recognised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedError
from .header import Header

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
ROPE_FREQS = "rope_freqs.weight"
# Factors of Llama 3.1 and 3.2; the other parameters are the same in all of them.
LLAMA3_FACTORS = (8.0, 32.0)
LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Architecture:
    """One architecture: mlx-lm's name, what its layers have beside those of all, its q and k."""

    kind: str
    model: str
    permuted: bool = False
    biases: bool = False
    head_norms: bool = False

    @property
    def layer(self) -> dict[str, str]:
        """llama.cpp's names of the parts of a layer, and mlx-lm's."""
        return LAYER | (HEAD_NORMS if self.head_norms else {})


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", permuted=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", biases=True),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", head_norms=True),
}


def target_config(gguf: Header) -> dict[str, Any]:
    """config.json of a target."""
    name = gguf.architecture
    heads = gguf.count(f"{name}.attention.head_count")
    hidden = gguf.count(f"{name}.embedding_length")
    head_dim = gguf.count(f"{name}.attention.key_length", hidden // heads)
    config = {
        "architectures": [ARCHITECTURES[name].model],
        "model_type": ARCHITECTURES[name].kind,
        "hidden_size": hidden,
        "num_hidden_layers": gguf.count(f"{name}.block_count"),
        "intermediate_size": gguf.count(f"{name}.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.count(f"{name}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": gguf.number(f"{name}.attention.layer_norm_rms_epsilon"),
        "rope_theta": gguf.number(f"{name}.rope.freq_base", 10000.0),
        "max_position_embeddings": gguf.count(f"{name}.context_length"),
        "vocab_size": len(gguf.need("tokenizer.ggml.tokens", list)),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": gguf.meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": gguf.need("tokenizer.ggml.eos_token_id", int),
    }
    if gguf.need(f"{name}.rope.scaling.type", str, "none") != "none":
        raise UnsupportedError(f"{gguf.path}: scaled RoPE; supported: plain RoPE and Llama 3.1's")
    return config


def llama3_scaling(gguf: Header, config: dict[str, Any], found: mx.array) -> dict[str, Any]:
    """The parameters of Llama 3.1's RoPE that give the divisors `found`.

    Raises:
        UnsupportedError: none of the known ones do.
    """
    stored = np.array(found.astype(mx.float32))
    for factor in LLAMA3_FACTORS:
        wanted = _llama3_divisors(config["rope_theta"], config["head_dim"], factor)
        if stored.shape == wanted.shape and np.allclose(stored, wanted, rtol=1e-4):
            return LLAMA3 | {"factor": factor}
    raise UnsupportedError(f"{gguf.path}: scaled RoPE, but not as Llama 3.1 has it")


def _llama3_divisors(theta: float, head_dim: int, factor: float) -> NDArray[np.float64]:
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    length = LLAMA3["original_max_position_embeddings"]
    periods = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((length / periods - low) / (high - low), 0, 1)  # type: ignore[operator]
    divisors: NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return divisors


def expected_shapes(name: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of mlx-lm's model of `config`, by name."""
    hidden, middle = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes: list[tuple[int, ...]] = [(q, hidden), (kv, hidden), (kv, hidden), (hidden, q)]
    shapes += [(middle, hidden), (middle, hidden), (hidden, middle), (hidden,), (hidden,)]
    layer = {f"{n}.weight": s for n, s in zip(LAYER.values(), shapes, strict=True)}
    if ARCHITECTURES[name].head_norms:
        layer |= {f"{norm}.weight": (config["head_dim"],) for norm in HEAD_NORMS.values()}
    if ARCHITECTURES[name].biases:
        sizes = {"q": q, "k": kv, "v": kv}
        layer |= {f"self_attn.{part}_proj.bias": (size,) for part, size in sizes.items()}
    table = (config["vocab_size"], hidden)
    expected = {"model.embed_tokens.weight": table, "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        expected["lm_head.weight"] = table
    for i in range(config["num_hidden_layers"]):
        expected |= {f"model.layers.{i}.{part}": shape for part, shape in layer.items()}
    return expected


def undo_permute(weight: mx.array, heads: int) -> mx.array:
    """The rows of q or k as they were before llama.cpp's converter."""
    # [heads, d/2, 2, in] -> [heads, 2, d/2, in]
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
