import json
import re
import struct
from pathlib import Path

import mlx.core as mx
import pytest

from dflash_mlx.checkpoint import check_names, read_config, read_tensors
from dflash_mlx.errors import CheckpointError, UnsupportedError

INDEX = "model.safetensors.index.json"


def write(path: Path, header: object, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def shards(folder: Path, *files: dict[str, mx.array]) -> None:
    index = {}
    for i, tensors in enumerate(files):
        mx.save_safetensors(str(folder / f"model-{i}.safetensors"), tensors)
        index |= dict.fromkeys(tensors, f"model-{i}.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))


def test_one_file_comes_back_as_it_was_saved(tmp_path):
    saved = {
        "a": mx.arange(6, dtype=mx.float32).reshape(2, 3),
        "b": mx.array([1, 2], dtype=mx.bfloat16),
        "c": mx.array(7, dtype=mx.uint32),
    }
    mx.save_safetensors(str(tmp_path / "model.safetensors"), saved, metadata={"format": "mlx"})
    read = read_tensors(tmp_path)
    assert read.keys() == saved.keys()
    for name, array in saved.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert mx.array_equal(read[name], array)


def test_shards_come_together(tmp_path):
    shards(tmp_path, {"a": mx.zeros(2)}, {"b": mx.ones(3), "c": mx.ones(1)})
    read = read_tensors(tmp_path)
    assert {name: array.tolist() for name, array in read.items()} == {
        **{"a": [0, 0], "b": [1, 1, 1], "c": [1]}
    }


def test_a_truncated_file_is_named_with_both_sizes(tmp_path):
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), {"a": mx.zeros(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    size = len(whole)
    message = f"{path}: expected {size} bytes, the file has {size - 1}; download it again"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(0, 8, [2])}, bytes(9), "expected .* bytes, the file has"),
        ({"a": entry(0, 4, [2])}, bytes(4), "a, F32 .2., takes 8 bytes, not 4"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12), "b starts at 4, expected 8"),
        ({"a": entry(4, 12, [2])}, bytes(12), "a starts at 4, expected 0"),
        ({"a": entry(8, 0, [2])}, bytes(8), "malformed"),
        ({"a": entry(0, 8, [-2])}, bytes(8), "malformed"),
        ({"a": entry(0, 4, [True])}, bytes(4), "malformed"),
        ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "lacks dtype, shape or data_offsets"),
        ({"a": 3}, b"", "lacks dtype"),
        ([], b"", "expected a JSON object"),
        (b"{nonsense}", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b'{"\xff": 1}', b"", "not UTF-8"),
        (b'{"a": {"dtype": "F32"}, "a": {}}', b"", "a name stands twice"),
    ],
)
def test_a_header_that_lies_is_refused_before_mlx_sees_it(
    tmp_path, monkeypatch, header, data, message
):
    monkeypatch.setattr(mx, "load", lambda *_, **__: pytest.fail("reached mx.load"))
    write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a safetensors file"),
        (b"short", "is not a safetensors file"),
        (struct.pack("<Q", 0), "is not a safetensors file"),
        (struct.pack("<Q", 2**62) + b"{}", "is not a safetensors file"),
        (struct.pack("<Q", 500) + b"{}", "expected at least 508 bytes, the file has 10"),
    ],
)
def test_a_header_length_that_lies_is_refused(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_tensors(tmp_path)


def test_a_dtype_mlx_lacks_is_named(tmp_path):
    write(tmp_path / "model.safetensors", {"a": entry(0, 8, [1], "F8_E8M0")}, bytes(8))
    with pytest.raises(UnsupportedError, match="a has dtype F8_E8M0; MLX reads BOOL, "):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", 3, ""]
)
def test_the_index_cannot_lead_out_of_the_folder(tmp_path, name):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="is not the name of a file in this folder"):
        read_tensors(tmp_path)


def test_contradictory_shards_are_refused(tmp_path):
    shards(tmp_path, {"a": mx.zeros(2), "c": mx.zeros(1)}, {"a": mx.zeros(2), "b": mx.zeros(2)})
    with pytest.raises(CheckpointError, match=r"model-1.safetensors: also in another shard: a$"):
        read_tensors(tmp_path)


def test_a_tensor_the_index_promises_must_be_in_its_shard(tmp_path):
    shards(tmp_path, {"a": mx.zeros(2)})
    index = {"weight_map": {"a": "model-0.safetensors", "b": "model-0.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="in the index only: b"):
        read_tensors(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    shards(tmp_path, {"a": mx.zeros(2)}, {"b": mx.zeros(2)})
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing shards: model-1.safetensors; download"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_map(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match="no weight_map"):
        read_tensors(tmp_path)


def test_folders_without_safetensors(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        read_tensors(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor"):
        read_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedError, match=r"pytorch_model.bin; pickles are not read"):
        read_tensors(tmp_path)


def test_names_and_shapes_are_held_against_what_is_expected():
    tensors = {"a": mx.zeros((2, 3)), "b": mx.zeros(4)}
    check_names(tensors, {"a": (2, 3), "b": (4,)}, "draft")
    with pytest.raises(CheckpointError, match=r"draft: missing tensors: c"):
        check_names(tensors, {"a": (2, 3), "b": (4,), "c": (1,)}, "draft")
    with pytest.raises(CheckpointError, match=r"draft: unknown tensors: b"):
        check_names(tensors, {"a": (2, 3)}, "draft")
    with pytest.raises(CheckpointError, match=r"wrong shapes: a is \[2, 3\], expected \[3, 2\]"):
        check_names(tensors, {"a": (3, 2), "b": (4,)}, "draft")


def test_long_lists_are_cut_with_a_count():
    with pytest.raises(CheckpointError, match=r"missing tensors: t0, t1, t2, t3, t4 and 3 more$"):
        check_names({}, {f"t{i}": (1,) for i in range(8)}, "draft")


def test_a_config_is_read_and_auto_map_is_harmless(tmp_path):
    config = {"model_type": "qwen3", "auto_map": {"AutoModel": "evil.Model"}, "x": [1, "é"]}
    (tmp_path / "config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config.json is missing"),
        (b"\xff\xfe", "not UTF-8"),
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[1]", "expected a JSON object"),
    ],
)
def test_a_broken_config_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_config(tmp_path)


def test_a_config_that_brings_its_own_code_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_file": "evil.py"}')
    with pytest.raises(UnsupportedError, match=r"asks to run its own code .*'evil.py'"):
        read_config(tmp_path)
