"""Targets: the same bytes as mlx-lm's own conversion, and decoding that stays lossless."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm.utils import load_model

from dflash_mlx.checkpoint import read_tensors
from dflash_mlx.convert.recipe import DraftRecipe, TargetRecipe
from dflash_mlx.convert.run import Request, prepare
from dflash_mlx.errors import PairError, UnsupportedError, UsageError
from dflash_mlx.generation import rounds
from dflash_mlx.loading import load
from dflash_mlx.options import Options

from . import convert_cases as cases
from .reduced import CONFIGS

PROMPT = [1, 2, 3, 17, 5]
MODES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "affine 4": {"bits": 4, "group_size": 32},
    "affine 3, bfloat16": {"bits": 3, "group_size": 32, "dtype": "bfloat16"},
    "mxfp4": {"mode": "mxfp4"},
    "mxfp8": {"mode": "mxfp8"},
    "nvfp4": {"mode": "nvfp4"},
    "recipe": {"recipe": "mixed_3_6", "group_size": 32},
}
# Dense, recurrent, experts, latent attention, a config within a config.
KINDS = ("llama", "qwen3_5_moe", "gpt_oss", "kimi_k25", "gemma4-shared")


def by_mlx_lm(source: Path, out: Path, recipe: dict[str, Any]) -> Path:
    """What mlx-lm's own command makes of it."""
    how = TargetRecipe(**recipe)
    mlx_lm.convert(
        str(source),
        str(out),
        quantize=how.quantises,
        q_group_size=how.group_size,
        q_bits=how.bits,
        q_mode=how.mode,
        dtype=how.dtype,
        quant_predicate=how.recipe,
    )
    return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", KINDS)
def test_the_bytes_are_mlx_lms(tmp_path: Path, family: str, mode: str) -> None:
    source = cases.write_target(tmp_path / "source", family)
    wanted = by_mlx_lm(source, tmp_path / "mlx-lm", MODES[mode])
    out = cases.convert(source, tmp_path / "out", parts="target", target=MODES[mode])
    ours, theirs = read_tensors(out), read_tensors(wanted)
    assert ours.keys() == theirs.keys()
    assert any(n.endswith(".scales") for n in ours) == TargetRecipe(**MODES[mode]).quantises
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert mx.array_equal(ours[name], tensor, equal_nan=True), name
    assert read(out) == read(wanted)


def read(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_alone_and_in_a_pair(tmp_path: Path, family: str) -> None:
    """Not quantised, the logits are the same bits; quantised, decoding is lossless."""
    source = cases.write_target(tmp_path / "source", family)
    config = cases.family_config(family)
    layers = config.get("text_config", config)["num_hidden_layers"]
    draft = cases.write_draft(tmp_path / "draft", cases.DRAFT | {"num_target_layers": layers})
    plain = cases.convert(source, tmp_path / "plain", parts="target")
    assert mx.array_equal(logits(plain), logits(source))
    quantised = {"bits": 8, "group_size": 32}
    drafter = {"fc": 8, "attention": 8, "mlp": 8, "group_size": 32}
    out = cases.convert(source, tmp_path / "pair", draft, target=quantised, drafter=drafter)
    pair = replace(load(str(out), quiet=True), eos_ids=frozenset())
    assert decode(pair) == decode(pair, speculate=False)
    assert pair.draft_name == f"{out}/draft"


def logits(folder: Path) -> mx.array:
    model, _ = load_model(folder)
    found: mx.array = model(mx.array([PROMPT]))
    return found


def decode(pair: Any, **options: Any) -> list[int]:
    done = rounds(pair, PROMPT, Options(max_tokens=12, **options))
    return [token for round_ in done for token in round_.tokens]


def test_what_belongs_to_the_tokenizer_is_copied_and_code_is_not(tmp_path: Path) -> None:
    source = cases.write_target(tmp_path / "source")
    (source / "generation_config.json").write_text('{"eos_token_id": [3]}')
    (source / "modeling.py").write_text("raise SystemExit")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    out = cases.convert(source, tmp_path / "out", parts="target")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert not list(out.glob("*.py")) + list(out.glob("*.bin"))


def test_a_target_that_is_quantised_already(tmp_path: Path) -> None:
    source = cases.write_target(tmp_path / "source")
    bits = {"bits": 4, "group_size": 32}
    once = cases.convert(source, tmp_path / "once", parts="target", target=bits)
    with pytest.raises(UsageError, match="quantised already; leave out bits"):
        cases.convert(once, tmp_path / "twice", parts="target", target=bits)
    copy = cases.convert(once, tmp_path / "copy", parts="target")
    assert mx.array_equal(logits(copy), logits(once))


def test_code_is_never_run(tmp_path: Path) -> None:
    source = cases.write_target(tmp_path / "source")
    config = read(source)
    (source / "config.json").write_text(json.dumps(config | {"model_file": "evil.py"}))
    (source / "evil.py").write_text("open('ran', 'w')")
    with pytest.raises(UnsupportedError, match="code from checkpoints is never run"):
        cases.convert(source, tmp_path / "out", parts="target")
    (source / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.M"}}))
    out = cases.convert(source, tmp_path / "out", parts="target")
    assert "auto_map" not in read(out)
    assert not Path("ran").exists()


def test_a_draft_for_another_target_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = cases.write_target(tmp_path / "source")
    draft = cases.write_draft(tmp_path / "draft", cases.DRAFT | {"num_target_layers": 40})
    with pytest.raises(PairError, match="made for 40 target layers, the target has 4"):
        cases.convert(source, tmp_path / "out", draft)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["draft", "source"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"bits": 7}, "bits in mode affine is 7, expected one of 2, 3, 4, 5, 6, 8"),
        ({"bits": 8, "mode": "mxfp4"}, "bits in mode mxfp4 is 8, expected one of 4"),
        ({"mode": "nvfp4", "group_size": 32}, "group size in mode nvfp4 is 32"),
        ({"mode": "int4"}, "mode is int4"),
        ({"recipe": "mixed_1_2"}, "recipe is mixed_1_2"),
        ({"recipe": "mixed_3_4", "bits": 4}, "chooses mode and bits; leave out both"),
        ({"group_size": 32}, "a group size needs bits"),
        ({"dtype": "int8"}, "dtype is int8"),
    ],
)
def test_recipes_that_do_not_exist(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TargetRecipe(**recipe)


def test_bits_that_fit_no_layer_are_refused(tmp_path: Path) -> None:
    source = cases.write_target(tmp_path / "source")
    with pytest.raises(UsageError, match="no layer has rows of whole groups of 128"):
        cases.convert(source, tmp_path / "o", parts="target", target={"bits": 4, "group_size": 128})


@pytest.mark.parametrize("limit", [100_000, 300_000])
def test_memory_stays_below_twice_the_largest_file(tmp_path: Path, limit: int) -> None:
    """Counted by MLX, from the first byte read to the last one written."""
    source = cases.write_target(tmp_path / "source", "qwen3_moe")
    target, draft = TargetRecipe(bits=4, group_size=32), DraftRecipe()
    request = Request(str(source), tmp_path / "out", None, "target", target, draft, limit=limit)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    job = prepare(request)
    largest = max(job.plans[0].sizes.values())
    job.write(lambda *_: None)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == len(job.plans[0].sizes)
    assert mx.get_peak_memory() - before < 2 * largest
    assert read_tensors(tmp_path / "out").keys() == dict(load_tensors(source, tmp_path)).keys()


def load_tensors(source: Path, scratch: Path) -> dict[str, mx.array]:
    whole = scratch / "whole"
    cases.convert(source, whole, parts="target", target={"bits": 4, "group_size": 32})
    return read_tensors(whole)
