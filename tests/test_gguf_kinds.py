"""GGUFs beside the plain llama of `test_gguf.py`: Qwens, Llama 3, every tensor type."""

import importlib
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from mlx.utils import tree_flatten

from dflash_mlx.checkpoint import read_tensors
from dflash_mlx.errors import UnsupportedError, UsageError
from dflash_mlx.gguf import architectures, blocks, convert_gguf
from dflash_mlx.gguf.header import LAYOUTS, Header, Tensor

from .test_gguf import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INPUT,
    KV_HEADS,
    LAYERS,
    MIDDLE,
    TOKENS,
    metadata,
    write_gguf,
)


def qwen(kind: str, path: Path) -> Any:
    """A Qwen, its GGUF with the names of llama.cpp, and mlx-lm's model to compare with."""
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    more = {"head_dim": HEAD_DIM} if kind == "qwen3" else {}
    arguments = module.ModelArgs(
        model_type=kind,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        intermediate_size=MIDDLE,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        vocab_size=len(TOKENS),
        rope_theta=500.0,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        **more,
    )
    mx.random.seed(1)
    model = module.Model(arguments)
    model.load_weights(
        [
            (n, mx.random.normal(w.shape) * (0.2 if w.ndim == 2 else 0.1) + n.endswith("m.weight"))
            for n, w in tree_flatten(model.parameters())
        ]
    )
    known = architectures.LAYER | architectures.HEAD_NORMS
    names = {new: old for old, new in known.items()}
    tops = {new: old for old, new in architectures.TOP.items()}
    weights = {}
    for name, weight in tree_flatten(model.parameters()):
        stem, _, part = name.rpartition(".")
        if stem in tops:
            weights[f"{tops[stem]}.{part}"] = weight
        else:
            _, _, layer, place = stem.split(".", 3)
            weights[f"blk.{layer}.{names[place]}.{part}"] = weight
    meta = {k.replace("llama.", f"{kind}.", 1): v for k, v in metadata().items()}
    meta |= {"general.architecture": kind, "tokenizer.ggml.pre": "qwen2"}
    if kind == "qwen3":
        meta[f"{kind}.attention.key_length"] = mx.array(HEAD_DIM, dtype=mx.uint32)
    mx.save_gguf(str(path), weights, meta)
    return model


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_qwens_compute_what_the_original_does(tmp_path, kind):
    model = qwen(kind, tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out", dtype=None)
    converted, tokenizer = mlx_lm.load(str(tmp_path / "out"))
    assert mx.allclose(converted(INPUT), model(INPUT), atol=1e-4)
    assert {w.dtype for w in read_tensors(tmp_path / "out").values()} == {mx.float32}
    # Words take the space before them; digits stand alone.
    assert [TOKENS[i] for i in tokenizer.encode("the the12")] == ["the", "Ġthe", "1", "2"]


def test_llama_3s_divisors_by_hand(tmp_path):
    """Fast pairs as they are, slow ones divided, those between blended (Llama 3.1's report)."""
    header = Header(tmp_path, {}, {})
    config = {"rope_theta": 500000.0, "head_dim": 128}
    found = []
    for pair in range(64):
        period = 2 * np.pi * 500000.0 ** (2 * pair / 128)
        if period < 8192 / 4:
            found.append(1.0)
        elif period > 8192:
            found.append(8.0)
        else:
            share = (8192 / period - 1) / 3
            found.append(1 / ((1 - share) / 8 + share))
    scaling = architectures.llama3_scaling(header, config, mx.array(found))
    assert scaling["factor"] == 8.0
    found[40] *= 1.1
    with pytest.raises(UnsupportedError, match=r"not as Llama 3\.1 has it"):
        architectures.llama3_scaling(header, config, mx.array(found))


def test_a_token_in_front_where_the_file_says_so(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__pre="llama-bpe")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    _, tokenizer = mlx_lm.load(str(tmp_path / "out"))
    assert [TOKENS[i] for i in tokenizer.encode("12")] == ["<|im_start|>", "12"]


@pytest.mark.parametrize("name", ["Q5_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "BF16"])
def test_every_other_type_is_unpacked_in_slabs_as_by_its_authors(monkeypatch, name):
    kind = next(k for k, layout in LAYOUTS.items() if layout.name == name)
    layout, rows = LAYOUTS[kind], 40
    random = np.random.default_rng(kind)
    raw = random.integers(0, 256, (rows, 2 * layout.nbytes), dtype=np.uint8)
    # Scales of ordinary size, wherever they stand in a block.
    raw.reshape(-1, layout.nbytes)[:, 1::2] &= 0x3B
    wanted = dequantize(raw, GGMLQuantizationType(kind))
    assert np.isfinite(wanted).all()
    monkeypatch.setattr(blocks, "SLAB", 4 * wanted.shape[1] * 7)
    data = b"head" + raw.tobytes()
    found = blocks.read_tensor(data, Tensor(kind, wanted.shape, 4), mx.float32)
    np.testing.assert_array_equal(np.array(found), wanted)


def test_k_quants_without_their_package_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"Q4_K tensors needs .*pip install '\.\[gguf\]'"):
        blocks.unpack(12, np.zeros(144, np.uint8))
