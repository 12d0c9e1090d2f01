"""Drafts, from every layout they are found in to z-lab's, in few bits and in many."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from dflash_mlx.checkpoint import read_tensors
from dflash_mlx.config import DraftConfig
from dflash_mlx.convert.recipe import DraftRecipe
from dflash_mlx.errors import CheckpointError, DFlashError, UnsupportedError, UsageError
from dflash_mlx.loading import read_draft

from . import convert_cases as cases
from .parity_configs import CONFIGS as PUBLISHED

VOCAB = cases.VOCAB


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def read(folder: Path) -> Any:
    return read_draft(folder, DraftConfig.from_dict(config_of(folder), "config.json"))


def drafted(network: Any) -> mx.array:
    """What a draft makes of fixed features and a fixed block."""
    mx.random.seed(2)
    config = network.config
    features = mx.random.normal((1, 24, len(config.taps) * config.hidden_size))
    cache = network.new_cache()
    state = network.extend(features, 0, cache.begin(0, 24 + config.block_size, fixed=False))
    block = mx.random.normal((1, config.block_size, config.hidden_size))
    hidden, _ = network.forward(block, 24, state)
    return hidden


def same_tensors(a: Path, b: Path) -> bool:
    found, wanted = read_tensors(a), read_tensors(b)
    return found.keys() == wanted.keys() and all(
        found[n].dtype == wanted[n].dtype and mx.array_equal(found[n], wanted[n]) for n in wanted
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_draft_in_all_bits_and_in_eight(tmp_path: Path, name: str) -> None:
    raw = PUBLISHED[name]
    source = cases.write_draft(tmp_path / "draft", raw)
    out = cases.convert(source, tmp_path / "out", parts="draft")
    assert same_tensors(out, source)
    assert config_of(out) == raw
    wanted = drafted(read(source))
    assert mx.array_equal(drafted(read(out)), wanted)
    recipe = {"fc": 8, "attention": 8, "mlp": 8, "group_size": 32}
    out = cases.convert(source, tmp_path / "8", parts="draft", drafter=recipe)
    stems = {n.removesuffix(".scales") for n in read_tensors(out) if n.endswith(".scales")}
    layers = range(raw["num_hidden_layers"])
    attention = {f"layers.{i}.self_attn.{p}_proj" for i in layers for p in "qkvo"}
    mlp = {f"layers.{i}.mlp.{p}_proj" for i in layers for p in ("gate", "up", "down")}
    assert stems == {"fc"} | attention | mlp
    assert mx.abs(drafted(read(out)) - wanted).mean() < 0.1 * mx.abs(wanted).mean()


def expected(raw: dict[str, Any]) -> DraftConfig:
    return DraftConfig.from_dict(raw, "config")


LAYOUTS = {
    "model. prefix": lambda p: cases.write(
        p, cases.DRAFT, {f"model.{n}": a for n, a in cases.draft_tensors(cases.DRAFT).items()}
    ),
    "speculators": cases.write_speculators,
    "GGUF": lambda p: cases.write_gguf_draft(p.with_suffix(".gguf")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_the_published_one(tmp_path: Path, layout: str) -> None:
    target = cases.write_target(tmp_path / "target")
    source = LAYOUTS[layout](tmp_path / "draft")
    out = cases.convert(target, tmp_path / "out", source, parts="draft")
    assert same_tensors(out, cases.write_draft(tmp_path / "wanted"))
    assert expected(config_of(out)) == expected(cases.DRAFT)
    # Which published readers insist on.
    assert config_of(out)["num_target_layers"] == 4
    assert config_of(out)["dflash_config"]["mask_token_id"] == 63


def test_a_dflash2_gguf(tmp_path: Path) -> None:
    source = cases.write_gguf_draft(tmp_path / "draft.gguf", cases.SECOND)
    out = cases.convert(cases.write_target(tmp_path / "t"), tmp_path / "out", source, parts="draft")
    assert same_tensors(out, cases.write_draft(tmp_path / "wanted", cases.SECOND))
    assert expected(config_of(out)) == expected(cases.SECOND)


def test_metas_assistant_is_never_causal(tmp_path: Path) -> None:
    source = cases.write_muse(tmp_path / "draft")
    out = cases.convert(cases.write_target(tmp_path / "t"), tmp_path / "out", source, parts="draft")
    assert same_tensors(out, cases.write_draft(tmp_path / "wanted"))
    config = expected(config_of(out))
    assert config.causal == (False, False)
    assert (config.taps, config.mask_token_id, config.block_size) == ((0, 2), 63, 4)
    assert (config.vocab_size, config.num_target_layers) == (VOCAB, 4)


def test_vllms_name_of_the_first_layer(tmp_path: Path) -> None:
    raw = cases.DRAFT | {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    tensors = cases.draft_tensors(raw)
    named = {n.replace("layers.0.", "midlayer."): a for n, a in tensors.items()}
    out = cases.convert(
        cases.write(tmp_path / "draft", raw, named), tmp_path / "out", parts="draft"
    )
    assert read_tensors(out).keys() == tensors.keys()


def test_taps_that_count_the_embedding_are_one_too_high(tmp_path: Path) -> None:
    """Taken as they stand, they would run and draft worse: nothing else would tell."""
    source = cases.write_speculators(tmp_path / "draft")
    assert config_of(source)["aux_hidden_state_layer_ids"] == [1, 3]
    out = cases.convert(source, tmp_path / "out", parts="draft")
    assert config_of(out)["dflash_config"]["target_layer_ids"] == [0, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speculators_model_type": "eagle3"}, "of these only 'dflash'"),
        ({"draft_vocab_size": 32}, "a vocabulary of its own, 32 of 64 tokens"),
        ({"sample_from_anchor": True}, "predicts at the anchor"),
        ({"aux_hidden_state_layer_ids": [0, 2]}, "taps the embedding"),
        ({"aux_hidden_state_layer_ids": None}, "is None, no numbers"),
        ({"transformer_layer_config": None}, "transformer_layer_config is missing"),
    ],
)
def test_speculators_drafts_of_other_kinds_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    source = cases.write_speculators(tmp_path / "draft", **changes)
    with pytest.raises(DFlashError, match=message):
        cases.convert(source, tmp_path / "out", parts="draft")
    assert not (tmp_path / "out").exists()


def test_speculators_sliding_layers_may_look_ahead(tmp_path: Path) -> None:
    source = cases.write_speculators(tmp_path / "draft", sliding_window_non_causal=True)
    out = cases.convert(source, tmp_path / "out", parts="draft")
    assert expected(config_of(out)).causal == (False, False)


@pytest.mark.parametrize("other", ["markov_rank", "expert_count"])
def test_other_drafts_under_llama_cpps_name_are_refused(tmp_path: Path, other: str) -> None:
    source = cases.write_gguf_draft(tmp_path / "draft.gguf", **{other: 8})
    with pytest.raises(UnsupportedError, match=f"dflash.{other} is set"):
        cases.convert(source, tmp_path / "out", parts="draft")
    assert [p.name for p in tmp_path.iterdir()] == ["draft.gguf"]


def test_a_gguf_draft_without_a_target_says_what_is_missing(tmp_path: Path) -> None:
    source = cases.write_gguf_draft(tmp_path / "draft.gguf")
    with pytest.raises(CheckpointError, match="how many tokens its target has; name the target"):
        cases.convert(source, tmp_path / "out", parts="draft")


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (mx.float32, None, mx.float32),
        (mx.bfloat16, None, mx.bfloat16),
        (mx.float16, None, mx.bfloat16),  # never kept: see the next test
        (mx.float32, "bfloat16", mx.bfloat16),
        (mx.float16, "float32", mx.float32),
    ],
)
def test_dtypes(tmp_path: Path, stored: mx.Dtype, asked: str | None, expected: mx.Dtype) -> None:
    source = cases.write_draft(tmp_path / "draft", dtype=stored)
    out = cases.convert(source, tmp_path / "out", parts="draft", drafter={"dtype": asked})
    assert {tensor.dtype for tensor in read_tensors(out).values()} == {expected}
    assert config_of(out)["dtype"] == str(expected).removeprefix("mlx.core.")


def test_float16_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="overflow it in the fusion; use bfloat16"):
        DraftRecipe(dtype="float16")


def test_every_group_has_its_own_bits(tmp_path: Path) -> None:
    source = cases.write_draft(tmp_path / "draft")
    recipe = {"fc": 8, "attention": None, "mlp": 3, "group_size": 32}
    out = cases.convert(source, tmp_path / "out", parts="draft", drafter=recipe)
    stored = config_of(out)["quantization"]
    common = {"group_size": 32, "mode": "affine"}
    assert stored == {**common, "bits": 3, "fc": {**common, "bits": 8}}
    network = read(out)
    assert (network.layers[0].mlp.down_proj.bits, network.fc.bits) == (3, 8)
    assert not hasattr(network.layers[0].self_attn.o_proj, "bits")


def test_bits_that_fit_no_layer_are_refused(tmp_path: Path) -> None:
    source = cases.write_draft(tmp_path / "draft", cases.DRAFT | {"num_hidden_layers": 2})
    recipe = {"attention": 4, "mlp": 4, "group_size": 128}
    with pytest.raises(UsageError, match="no layer has rows of whole groups of 128"):
        cases.convert(source, tmp_path / "out", parts="draft", drafter=recipe)


def test_what_dflash_2_adds_is_never_quantised(tmp_path: Path) -> None:
    source = cases.write_draft(tmp_path / "draft", cases.SECOND)
    recipe = {"fc": 4, "attention": 4, "mlp": 4, "group_size": 32}
    out = cases.convert(source, tmp_path / "out", parts="draft", drafter=recipe)
    quantised = [n for n in read_tensors(out) if n.endswith(".scales")]
    assert quantised
    assert not [n for n in quantised if "conv" in n or "selector" in n or "norm" in n]
    assert "candidate_selector.predecessor_codebook" in read_tensors(out)
    read(out)


def test_fc_gets_more_bits_unless_told_otherwise() -> None:
    assert DraftRecipe.of(4) == DraftRecipe(8, 4, 4)
    assert DraftRecipe.of(4, fc=4) == DraftRecipe(4, 4, 4)
    assert DraftRecipe.of(None) == DraftRecipe()


def test_a_draft_that_is_quantised_already(tmp_path: Path) -> None:
    source = cases.write_draft(tmp_path / "draft")
    recipe = {"fc": 8, "attention": 4, "mlp": 4, "group_size": 32}
    once = cases.convert(source, tmp_path / "once", parts="draft", drafter=recipe)
    again = cases.convert(once, tmp_path / "again", parts="draft")
    assert same_tensors(again, once)
    # To the same bits it is quantised to the same numbers; other bits are others.
    same = cases.convert(once, tmp_path / "same", parts="draft", drafter=recipe)
    assert config_of(same) == config_of(once)
    fewer = recipe | {"fc": 4}
    third = cases.convert(once, tmp_path / "third", parts="draft", drafter=fewer)
    sizes = [sum(t.nbytes for t in read_tensors(f).values()) for f in (once, same, third)]
    assert sizes[0] == sizes[1] > sizes[2]
    read(third)


def test_tensors_that_are_not_the_drafts_are_named(tmp_path: Path) -> None:
    tensors = cases.draft_tensors(cases.DRAFT)
    tensors["mask_embedding.weight"] = tensors.pop("norm.weight")
    source = cases.write(tmp_path / "draft", cases.DRAFT, tensors)
    with pytest.raises(CheckpointError, match=r"missing tensors: norm.weight"):
        cases.convert(source, tmp_path / "out", parts="draft")


def test_the_card_says_what_it_is_and_how_it_was_made(tmp_path: Path) -> None:
    source = cases.write_speculators(tmp_path / "draft")
    recipe = {"fc": 8, "attention": 4, "mlp": 4, "group_size": 32}
    out = cases.convert(source, tmp_path / "out", parts="draft", drafter=recipe)
    card = (out / "README.md").read_text()
    for words in ("a DFlash draft", "speculators layout", "mlp: 4 bits", "taps 0, 2", "convert ("):
        assert words in card


def test_names_survive(tmp_path: Path) -> None:
    """Of all tensors of our network, under the names that read_draft looks for."""
    out = cases.convert(cases.write_draft(tmp_path / "d"), tmp_path / "out", parts="draft")
    names = dict(tree_flatten(read(out).parameters())).keys()
    assert names == read_tensors(out).keys()
