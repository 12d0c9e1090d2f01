"""Files from strangers: refused in one line, nothing run, nothing allocated by their word."""

import json
import pickle
import random
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from dflash_mlx.errors import DFlashError

from . import convert_cases as cases

WEIGHTS = "model.safetensors"


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return Path("ran").write_text, ("x",)  # type: ignore[return-value]


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def huge_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**60) + b"{}")


def huge_tensor(folder: Path) -> None:
    """A header that is right in itself, of a file that is not there."""
    entry = {"dtype": "F32", "shape": [2**40, 2**18], "data_offsets": [0, 2**60]}
    text = json.dumps({"norm.weight": entry}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text)


def outside(folder: Path) -> None:
    """The index leads to a file of the user's."""
    (folder / WEIGHTS).rename(folder.parent / "private.safetensors")
    tensors = ("norm.weight", "model.norm.weight")
    index = {"weight_map": dict.fromkeys(tensors, "../private.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def disguised(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(Bomb()))


def huge_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 2**40}))


def many_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2**28}))


ATTACKS = [cut, huge_header, huge_tensor, outside, pickled, disguised, huge_config, many_layers]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("part", ["target", "draft"])
def test_refused_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, attack: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    target, draft = cases.write_target(tmp_path / "target"), cases.write_draft(tmp_path / "draft")
    attack(target if part == "target" else draft)
    mx.reset_peak_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DFlashError) as caught:
        cases.convert(target, tmp_path / "out", draft)
    assert "\n" not in str(caught.value)
    assert mx.get_peak_memory() < 32 << 20
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 256 << 10  # KiB on Linux, more generous elsewhere
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["target", "draft"])
def test_flipped_bits_of_a_header_never_crash(tmp_path: Path, part: str) -> None:
    target, draft = cases.write_target(tmp_path / "target"), cases.write_draft(tmp_path / "draft")
    path = (target if part == "target" else draft) / WEIGHTS
    original = path.read_bytes()
    end = 8 + struct.unpack("<Q", original[:8])[0]
    chance = random.Random(7)
    refused = 0
    for attempt in range(25):
        content = bytearray(original)
        content[chance.randrange(end)] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        try:
            cases.convert(target, tmp_path / f"out{attempt}", draft)
        except DFlashError:
            refused += 1
    # What passes is a flip in what changes nothing, as a letter of the file's own metadata.
    assert refused > 20


def test_links_that_lead_out_are_not_copied(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"password": 1}')
    target = cases.write_target(tmp_path / "target")
    (target / "vocab.json").symlink_to(secret)
    (target / "inside.json").symlink_to(target / "tokenizer_config.json")
    out = cases.convert(target, tmp_path / "out", parts="target")
    assert not (out / "vocab.json").exists()
    assert (out / "inside.json").is_file()
