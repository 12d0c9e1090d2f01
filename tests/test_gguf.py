import json
import struct
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import pre_tokenizers

from dflash_mlx import gguf, shards
from dflash_mlx.checkpoint import read_tensors
from dflash_mlx.errors import CheckpointError, DFlashError, UnsupportedError, UsageError
from dflash_mlx.gguf import architectures, convert_gguf
from dflash_mlx.gguf.header import Reader

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MIDDLE, LAYERS = 64, 4, 2, 16, 96, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "Ġ t", "1 2"]  # digits are split before merging
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe", "Ġt", "12"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
INPUT = mx.array([[5, 17, 200, 33, 8, 120, 64, 2]])


def metadata() -> dict[str, object]:
    sizes = {
        "llama.block_count": LAYERS,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": MIDDLE,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.context_length": 128,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
    }
    return {
        "general.architecture": "llama",
        **{key: mx.array(value, dtype=mx.uint32) for key, value in sizes.items()},
        "llama.rope.freq_base": mx.array(500.0),
        "llama.attention.layer_norm_rms_epsilon": mx.array(1e-5),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.token_type": mx.array([3] * 3 + [1] * (len(TOKENS) - 3), dtype=mx.int32),
        "tokenizer.chat_template": TEMPLATE,
    }


def reference(*, tied: bool = True) -> llama.Model:
    """The model a GGUF of this test was made of, with weights that matter everywhere."""
    arguments = llama.ModelArgs(
        model_type="llama",
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        intermediate_size=MIDDLE,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        vocab_size=len(TOKENS),
        rope_theta=500.0,
        tie_word_embeddings=tied,
    )
    mx.random.seed(0)
    model = llama.Model(arguments)
    weights = [
        (name, mx.random.normal(w.shape) * (0.2 if w.ndim == 2 else 0.1) + (w.ndim == 1))
        for name, w in tree_flatten(model.parameters())
    ]
    model.load_weights(weights)
    return model


def permute(weight: mx.array, heads: int) -> mx.array:
    """What llama.cpp's converter does to q and k (`LlamaModel.permute`)."""
    shape = (heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)


def gguf_weights(model: llama.Model) -> dict[str, mx.array]:
    names = {new: old for old, new in architectures.LAYER.items()}
    tops = {new: old for old, new in architectures.TOP.items()}
    weights = {}
    for name, weight in tree_flatten(model.parameters()):
        stem = name.removesuffix(".weight")
        if stem in tops:
            weights[f"{tops[stem]}.weight"] = weight
            continue
        _, _, layer, part = stem.split(".", 3)
        if names[part] in ("attn_q", "attn_k"):
            weight = permute(weight, HEADS if names[part] == "attn_q" else KV_HEADS)
        weights[f"blk.{layer}.{names[part]}.weight"] = weight
    return weights


def write_gguf(path: Path, *, tied: bool = True, drop: str = "", **changes: object) -> llama.Model:
    model = reference(tied=tied)
    meta = metadata() | {key.replace("__", "."): value for key, value in changes.items()}
    meta.pop(drop, None)
    mx.save_gguf(str(path), gguf_weights(model), meta)
    return model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize("tied", [True, False])
def test_the_converted_model_computes_what_the_original_does(tmp_path, tied):
    model = write_gguf(tmp_path / "tiny.gguf", tied=tied)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out", dtype=mx.float32)
    converted, _ = mlx_lm.load(str(tmp_path / "out"))
    assert mx.allclose(converted(INPUT), model(INPUT), atol=1e-4)


@pytest.mark.parametrize("part", ["attn_q", "attn_k"])
def test_the_comparison_notices_rows_left_permuted(tmp_path, monkeypatch, part):
    heads = HEADS if part == "attn_q" else KV_HEADS
    undo = gguf.undo_permute
    skip = lambda weight, n: weight if n == heads else undo(weight, n)  # noqa: E731
    monkeypatch.setattr(gguf, "undo_permute", skip)
    model = write_gguf(tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out", dtype=mx.float32)
    converted, _ = mlx_lm.load(str(tmp_path / "out"))
    assert mx.abs(converted(INPUT) - model(INPUT)).max() > 0.1


def test_everything_is_stored_in_the_dtype_asked_for(source, tmp_path):
    convert_gguf(source, tmp_path / "out")
    assert {w.dtype for w in read_tensors(tmp_path / "out").values()} == {mx.float16}


def test_the_tokenizer_splits_joins_and_knows_its_specials(source, tmp_path):
    convert_gguf(source, tmp_path / "out")
    _, tokenizer = mlx_lm.load(str(tmp_path / "out"))
    ids = tokenizer.encode("the the 12 é")
    texts = [TOKENS[i] for i in ids]
    assert texts[:5] == ["the", "Ġthe", "Ġ", "1", "2"]
    assert tokenizer.decode(ids) == "the the 12 é"
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.decode([0, 1, 2], skip_special_tokens=True) == ""
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.bos_token == "<|im_start|>"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False)
    assert chat == "<|im_start|>the<|im_end|>"


def q4_0(rows: np.ndarray) -> tuple[bytes, np.ndarray]:
    data, out = b"", []
    for block in rows.reshape(-1, 32):
        d = np.float16(block[np.abs(block).argmax()] / -8)
        q = np.clip(np.round(block / np.float32(d)) + 8, 0, 15).astype(np.uint8)
        data += d.tobytes() + (q[:16] | q[16:] << 4).tobytes()
        out.append((q.astype(np.float32) - 8) * np.float32(d))
    return data, np.concatenate(out).reshape(rows.shape)


def q4_1(rows: np.ndarray) -> tuple[bytes, np.ndarray]:
    data, out = b"", []
    for block in rows.reshape(-1, 32):
        d, low = np.float16((block.max() - block.min()) / 15), np.float16(block.min())
        q = np.clip(np.round((block - np.float32(low)) / np.float32(d)), 0, 15).astype(np.uint8)
        data += d.tobytes() + low.tobytes() + (q[:16] | q[16:] << 4).tobytes()
        out.append(q.astype(np.float32) * np.float32(d) + np.float32(low))
    return data, np.concatenate(out).reshape(rows.shape)


def q8_0(rows: np.ndarray) -> tuple[bytes, np.ndarray]:
    data, out = b"", []
    for block in rows.reshape(-1, 32):
        d = np.float16(np.abs(block).max() / 127)
        q = np.clip(np.round(block / np.float32(d)), -127, 127).astype(np.int8)
        data += d.tobytes() + q.tobytes()
        out.append(q.astype(np.float32) * np.float32(d))
    return data, np.concatenate(out).reshape(rows.shape)


def f16(rows: np.ndarray) -> tuple[bytes, np.ndarray]:
    half = rows.astype(np.float16)
    return half.tobytes(), half.astype(np.float32)


@pytest.mark.parametrize(("kind", "pack"), [(1, f16), (2, q4_0), (3, q4_1), (8, q8_0)])
def test_stored_blocks_are_read_bit_for_bit(tmp_path, kind, pack):
    """Replace the embedding of a GGUF by one packed here, and compare what comes out."""
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    rows = np.random.default_rng(0).normal(size=(len(TOKENS), HIDDEN)).astype(np.float32)
    data, expected = pack(rows)
    content = path.read_bytes()
    content = content.ljust(len(content) + -len(content) % 32, b"\0")
    name = b"token_embd.weight"
    # The tensor's type and offset stand after its name, the number of dimensions and two sizes.
    at = content.rindex(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4 + 2 * 8
    place = struct.pack("<IQ", kind, len(content) - data_start(content))
    path.write_bytes(content[:at] + place + content[at + len(place) :] + data)
    convert_gguf(path, tmp_path / "out", dtype=mx.float32)
    read = read_tensors(tmp_path / "out")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(np.array(read), expected)


def data_start(content: bytes) -> int:
    reader = Reader(content)
    reader.header(Path("x"))
    return reader.start(32)


@pytest.mark.parametrize("cut", [0, 3, 10, 100, 5000, -1000])
def test_a_truncated_file_is_refused(source, tmp_path, cut):
    source.write_bytes(source.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="not a whole GGUF"):
        convert_gguf(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 a zip",
        b"GGUF" + struct.pack("<I", 1),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 2**62),
        b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99),
    ],
)
def test_what_is_no_gguf_is_refused(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a whole GGUF"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"x.gguf cannot be read: No such file"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"general__architecture": "phi3"},
            UnsupportedError,
            "'phi3'; supported: 'llama', ",
        ),
        ({"llama__rope__scaling__type": "yarn"}, UnsupportedError, "scaled RoPE"),
        ({"tokenizer__ggml__model": "llama"}, UnsupportedError, "supported: 'gpt2' with"),
        ({"tokenizer__ggml__pre": "falcon"}, UnsupportedError, "tokenizer 'gpt2' with 'falcon'"),
        ({"drop": "llama.block_count"}, CheckpointError, "llama.block_count is None"),
        ({"llama__block_count": mx.array(3)}, CheckpointError, "missing tensors: model.layers.2"),
        ({"llama__block_count": mx.array(0)}, CheckpointError, "is 0, expected 1 or more"),
        ({"llama__attention__head_count_kv": mx.array(1)}, CheckpointError, "wrong shapes"),
        ({"tokenizer__ggml__tokens": TOKENS[:-1]}, CheckpointError, "tokens"),
        ({"tokenizer__ggml__eos_token_id": mx.array(9999)}, CheckpointError, "special token"),
    ],
)
def test_what_cannot_be_converted_says_why_and_leaves_nothing(tmp_path, changes, error, message):
    write_gguf(tmp_path / "tiny.gguf", **changes)
    with pytest.raises(error, match=message) as caught:
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "tiny.gguf") in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_nothing_half_written_stays(source, tmp_path, monkeypatch, failure):
    def fail(path: str, *_: object, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(shards, "write", fail)
    with pytest.raises((KeyboardInterrupt, DFlashError)):
        convert_gguf(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]


def test_an_existing_folder_is_left_alone(source, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="out exists; remove it"):
        convert_gguf(source, tmp_path / "out")


def test_the_config_is_what_the_original_had(source, tmp_path):
    convert_gguf(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 500.0)
    assert (config["tie_word_embeddings"], config["vocab_size"]) == (True, len(TOKENS))
