"""Drafts in few bits: as MLX stores them, and made so while loading."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from dflash_mlx.config import DraftConfig
from dflash_mlx.drafts import draft_for
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.errors import CheckpointError, UnsupportedError
from dflash_mlx.loading import read_draft
from dflash_mlx.train.start import existing

FIRST: dict[str, Any] = {
    "architectures": ["DFlashDraftModel"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 128,
    "vocab_size": 96,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "dflash_config": {"mask_token_id": 5, "target_layer_ids": [0, 2], "block_size": 4},
}
SECOND: dict[str, Any] = {
    **FIRST,
    "architectures": ["DFlash2DraftModel"],
    "dflash_config": {
        **FIRST["dflash_config"],
        "conv_group_size": 16,
        "conv_kernel_size": 2,
        "selector_rank": 64,
        "selector_top_k": 4,
    },
}
COMMON = {"group_size": 32, "bits": 8}
BOOK = "candidate_selector.predecessor_codebook"


def stored(raw: dict[str, Any], quantization: dict[str, Any] | None) -> dict[str, mx.array]:
    """The tensors of a checkpoint, quantised as mlx-lm would do it by `quantization`."""
    mx.random.seed(6)
    draft = draft_for(DraftConfig.from_dict(raw, "config"))
    for layer in draft.layers:
        layer.self_attn.q_norm.weight = 1 + mx.random.normal((32,)) / 4
    if quantization:
        settings = {k: v for k, v in quantization.items() if not isinstance(v, dict | bool)}

        def kind(path: str, module: nn.Module) -> Any:
            return quantization.get(path, isinstance(module, nn.Linear) and settings)

        nn.quantize(draft, class_predicate=kind)
    tensors = dict(tree_flatten(draft.parameters()))
    mx.eval(tensors)
    bare = {k: k.removesuffix(".weight") for k in tensors if k.endswith("_codebook.weight")}
    if f"{BOOK}.scales" in tensors:
        bare = {}
    return {bare.get(name, name): tensor for name, tensor in tensors.items()}


def write(folder: Path, raw: dict[str, Any], quantization: dict[str, Any] | None) -> Path:
    mx.save_safetensors(str(folder / "model.safetensors"), stored(raw, quantization))
    # mlx-lm writes the same under two names.
    both = {"quantization": quantization, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(raw | (both if quantization else {})))
    return folder


def read(folder: Path, **options: Any) -> DFlashDraft:
    raw = json.loads((folder / "config.json").read_text())
    return read_draft(folder, DraftConfig.from_dict(raw, "config.json"), **options)


def hidden(draft: DFlashDraft) -> mx.array:
    """What the draft makes of some context and a block."""
    a, b = mx.random.split(mx.random.key(3))
    cache = draft.new_cache()
    state = draft.extend(mx.random.normal((1, 9, 128), key=a), 0, cache.state)
    return draft.forward(mx.random.normal((1, 4, 64), key=b), 9, state)[0]


def bits_of(draft: DFlashDraft) -> dict[str, int]:
    quantised = nn.QuantizedLinear | nn.QuantizedEmbedding
    return {n: m.bits for n, m in draft.named_modules() if isinstance(m, quantised)}


@pytest.mark.parametrize("raw", [FIRST, SECOND], ids=["DFlash 1", "DFlash 2"])
@pytest.mark.parametrize(
    "quantization",
    [
        COMMON,
        {"group_size": 64, "bits": 4},
        {"group_size": 32, "bits": 4, "mode": "mxfp4"},
        {"group_size": 16, "bits": 4, "mode": "nvfp4"},
        COMMON | {"layers.0.self_attn.v_proj": {"group_size": 64, "bits": 4}, "fc": False},
        COMMON | {"layers.1.self_attn.k_proj": False},
        COMMON | {"layers.1.self_attn.k_proj": {"group_size": 32, "bits": 4, "mode": "mxfp4"}},
    ],
    ids=str,
)
def test_as_stored(tmp_path: Path, raw: dict[str, Any], quantization: dict[str, Any]) -> None:
    """Every layer has the bits of its own, and computes what its dequantised twin does."""
    draft = read(write(tmp_path, raw, quantization), dtype="float32")
    bits = bits_of(draft)
    for name, module in draft.named_modules():
        if "." in name and isinstance(module, nn.Linear) and name not in quantization:
            assert bits[name] == quantization["bits"]
    for name, value in quantization.items():
        if name not in ("group_size", "bits", "mode"):
            assert bits.get(name, False) == (value and value["bits"])
    twin = draft_for(draft.config)
    tensors = dict(tree_flatten(draft.parameters()))
    dense = {}
    for name in dict(tree_flatten(twin.parameters())):
        module = dict(draft.named_modules())[name.rpartition(".")[0]]
        if name.rpartition(".")[0] in bits and name.endswith(".weight"):
            dense[name] = mx.dequantize(
                module.weight,
                module.scales,
                module.get("biases"),
                module.group_size,
                module.bits,
                module.mode,
            )
        else:
            dense[name] = tensors[name]
    twin.load_weights(list(dense.items()))
    assert mx.allclose(hidden(draft), hidden(twin.prepare()), rtol=1e-3, atol=1e-3).item()


@pytest.mark.parametrize(
    "quantization",
    [
        COMMON | {BOOK: {"group_size": 64, "bits": 8}},
        {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    ],
    ids=str,
)
def test_dense_layers_compute_the_same(tmp_path: Path, quantization: dict[str, Any]) -> None:
    folder = write(tmp_path, SECOND, quantization)
    draft = read(folder, dtype="float32", dense=True)
    assert not bits_of(draft)
    stays = read(folder, dtype="float32")
    assert mx.allclose(hidden(draft), hidden(stays), rtol=1e-3, atol=1e-3).item()


def test_it_can_get_other_bits_while_loading(tmp_path: Path) -> None:
    folder = write(tmp_path, FIRST, COMMON)
    once, fewer = read(folder, dtype="float32"), read(folder, dtype="float32", bits=4)
    assert set(bits_of(fewer).values()) == {4}
    assert mx.allclose(hidden(fewer), hidden(once), atol=0.3).item()
    assert not mx.allclose(hidden(fewer), hidden(once), atol=1e-3).item()


def test_it_can_be_trained_further(tmp_path: Path) -> None:
    folder = write(tmp_path, FIRST, COMMON)
    draft = existing(folder, DraftConfig.from_dict(FIRST, "config"), None)
    assert not bits_of(draft) and draft.dtype == mx.float32
    stays = read(folder, dtype="float32")
    assert mx.allclose(hidden(draft.prepare()), hidden(stays), rtol=1e-3, atol=1e-3).item()


def test_codebooks_may_be_quantised_too(tmp_path: Path) -> None:
    quantization = COMMON | {BOOK: {"group_size": 64, "bits": 8}}
    draft = read(write(tmp_path, SECOND, quantization))
    assert bits_of(draft)[BOOK] == 8
    assert bits_of(draft)["layers.0.mlp_conv.kernel_projection"] == 8


@pytest.mark.parametrize("bits", [4, 8])
def test_while_loading_what_is_dflash_2s_own_stays(tmp_path: Path, bits: int) -> None:
    draft = read(write(tmp_path, SECOND, None), bits=bits)
    names = set(bits_of(draft))
    assert {"fc", "layers.1.self_attn.o_proj", "layers.0.mlp.down_proj"} <= names
    assert not [n for n in names if "conv" in n or "selector" in n]
    assert set(bits_of(draft).values()) == {bits}


@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_are_those_of_the_checkpoints(tmp_path: Path, prefix: str) -> None:
    """15 tensors a layer and 6 more, codebooks without an ending."""
    tensors = stored(SECOND, None)
    layer = {
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        *(f"self_attn.{n}.weight" for n in ("q_proj", "k_proj", "v_proj", "o_proj")),
        *(f"self_attn.{n}.weight" for n in ("q_norm", "k_norm")),
        *(f"mlp.{n}.weight" for n in ("gate_proj", "up_proj", "down_proj")),
        *(f"{c}_conv.{n}" for c in ("attention", "mlp") for n in ("base_kernel",)),
        *(f"{c}_conv.kernel_projection.weight" for c in ("attention", "mlp")),
    }
    rest = {"fc.weight", "hidden_norm.weight", "norm.weight", BOOK}
    rest |= {f"candidate_selector.{n}" for n in ("successor_codebook", "hidden_projection.weight")}
    assert set(tensors) == rest | {f"layers.{i}.{name}" for i in range(2) for name in layer}
    write(tmp_path, SECOND, None)
    renamed = {prefix + name: tensor for name, tensor in tensors.items()}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), renamed)
    draft = read(tmp_path, dtype="float32")
    book = draft.candidate_selector.predecessor_codebook.weight
    assert mx.array_equal(book, tensors[BOOK]).item()


@pytest.mark.parametrize(
    ("quantization", "kind", "message"),
    [
        ({"quant_method": "fp8"}, UnsupportedError, "drafts quantised by MLX"),
        ({"bits": 8}, CheckpointError, "quantization: the field 'group_size' is missing"),
        ({"group_size": 32, "bits": "8"}, CheckpointError, "bits is '8', expected a int"),
        (COMMON | {"mode": "int3"}, UnsupportedError, "quantization mode 'int3'; MLX has affine"),
        ({"group_size": 48, "bits": 8}, CheckpointError, "quantization does not fit"),
        ({"group_size": 32, "bits": 9}, CheckpointError, "quantization does not fit"),
        ({"group_size": 32, "bits": 4}, CheckpointError, "wrong shapes"),
    ],
)
def test_settings_that_do_not_fit(
    tmp_path: Path, quantization: dict[str, Any], kind: type[Exception], message: str
) -> None:
    write(tmp_path, FIRST, COMMON)
    config = FIRST | {"quantization": quantization}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(kind, match=message):
        read(tmp_path)
