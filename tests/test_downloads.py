"""What lies on the disk is found and read without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dflash_mlx.catalog import DRAFTS, TARGETS
from dflash_mlx.downloads import INDEX, folder_size, in_cache, read
from dflash_mlx.footprint import Weights

from .hub_cache import DRAFT, QWEN, store, weigh


def test_a_download_is_read(tmp_path: Path) -> None:
    folder = store(tmp_path, "Qwen/Qwen3-4B", QWEN, 1000)
    (found,) = in_cache(tmp_path)
    assert (found.name, found.folder, found.size) == ("Qwen/Qwen3-4B", folder, 1000)
    assert found.complete and found.bits is None
    assert found.target_shape() == TARGETS["Qwen/Qwen3-4B"].shape
    assert found.draft_shape() is None


def test_main_is_preferred_to_other_revisions(tmp_path: Path) -> None:
    store(tmp_path, "Qwen/Qwen3-4B", QWEN, 1, commit="new")
    other = tmp_path / "models--Qwen--Qwen3-4B" / "snapshots" / "old"
    other.mkdir()
    (other / "config.json").write_text("{}")
    (found,) = in_cache(tmp_path)
    assert found.folder.name == "new"
    (tmp_path / "models--Qwen--Qwen3-4B" / "refs" / "main").unlink()
    assert len(list(in_cache(tmp_path))) == 1


def test_missing_shards_make_it_incomplete(tmp_path: Path) -> None:
    folder = store(tmp_path, "Qwen/Qwen3-4B", QWEN, 10)
    (folder / "model.safetensors").unlink()
    shards = {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": shards}))
    weigh(folder, 7, "one.safetensors")
    found = read(folder)
    assert found is not None
    assert (found.complete, found.size) == (False, 7)
    weigh(folder, 5, "two.safetensors")
    found = read(folder)
    assert found is not None
    assert (found.complete, found.size) == (True, 12)


@pytest.mark.parametrize("config", ["", "[]", "{", "\udcff"])
def test_what_cannot_be_read_is_no_download(tmp_path: Path, config: str) -> None:
    folder = store(tmp_path, "Qwen/Qwen3-4B", QWEN, 10)
    (folder / "config.json").write_bytes(config.encode(errors="surrogateescape"))
    assert list(in_cache(tmp_path)) == []
    (folder / "config.json").unlink()
    assert read(folder) is None
    assert list(in_cache(tmp_path / "nothing")) == []


def test_a_draft_is_read(tmp_path: Path) -> None:
    store(tmp_path, "z-lab/Qwen3-4B-DFlash-b16", DRAFT, 1074854400)
    (found,) = in_cache(tmp_path)
    shape = found.draft_shape()
    assert shape is not None
    assert (shape.layers, shape.block, shape.taps) == (5, 16, 5)
    listed = DRAFTS["z-lab/Qwen3-4B-DFlash-b16"]
    assert shape.context(5000, 2) == listed.shape.context(5000, 2)
    assert found.weights(None) == listed.weights


@pytest.mark.parametrize(
    ("more", "known", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, None, Weights(500)),
        ({"dtype": "float32"}, None, Weights(250)),
        # A vision tower is in the files and is not loaded.
        ({"dtype": "bfloat16"}, Weights(400), Weights(400)),
        ({"dtype": "bfloat16"}, Weights(600), Weights(500)),
        (
            {"quantization": {"bits": 4, "group_size": 64}},
            Weights(400),
            Weights(1778, bits=4, group=64),
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, Weights(9, "fp8"), Weights(9, "fp8")),
    ],
)
def test_weights_of_files(
    tmp_path: Path, more: dict[str, Any], known: Weights | None, expected: Weights
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(more))
    weigh(tmp_path, 1000)
    found = read(tmp_path)
    assert found is not None
    assert found.weights(known) == expected
    if expected.bits:
        assert expected.loaded(8, 2) == pytest.approx(1000, abs=1)


def test_folder_sizes_count_a_file_once(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "blobs" / "a")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert folder_size(tmp_path) == 5
    assert folder_size(tmp_path / "nowhere") == 0
