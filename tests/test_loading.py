"""From names to pairs, and what is refused on the way."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from dflash_mlx.config import DraftConfig
from dflash_mlx.embedded import embedded_draft
from dflash_mlx.errors import (
    CheckpointError,
    DFlashError,
    ModelNotFoundError,
    PairError,
    UnsupportedError,
    UsageError,
)
from dflash_mlx.generation import generate, rounds
from dflash_mlx.loading import load, read_draft
from dflash_mlx.options import Options
from dflash_mlx.targets import target_for

from .families import COMMON, CONFIGS, FAMILIES, VOCAB, language_model, plain_ids
from .tiny import tokenizer

TARGET = {**COMMON, "model_type": "llama", "tie_word_embeddings": True, "head_dim": 12}
DRAFT = {
    "architectures": ["DFlashDraftModel"],
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "block_size": 4,
    "num_target_layers": 4,
    "dflash_config": {"mask_token_id": 63, "target_layer_ids": [0, 2]},
}


def write_target(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**TARGET, **changes}))
    tensors = dict(tree_flatten(language_model("llama-tied").parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    tokenizer()._tokenizer.save_pretrained(folder)
    return folder


def write_draft(folder: Path, **changes: Any) -> Path:
    from dflash_mlx.drafts.dflash import DFlashDraft

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**DRAFT, **changes}))
    network = DFlashDraft(DraftConfig.from_dict(DRAFT, "config"))
    tensors = dict(tree_flatten(network.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_target(tmp_path / "target")


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    return write_draft(tmp_path / "draft")


def test_local_folders(target: Path, draft: Path) -> None:
    pair = load(str(target), str(draft), quiet=True)
    assert pair.draft is not None
    assert pair.target.taps == (0, 2)
    assert pair.max_context == 4096
    plain = generate(pair, [1, 2, 3], Options(max_tokens=20, speculate=False))
    assert generate(pair, [1, 2, 3], Options(max_tokens=20)) == plain


def write_family(folder: Path, family: str) -> Path:
    """A reduced model of a family, as a checkpoint has it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[family]))
    tensors = dict(tree_flatten(language_model(family).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})
    tokenizer()._tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_from_a_folder(tmp_path: Path, family: str) -> None:
    folder, drafted = write_family(tmp_path / "target", family), tmp_path / "draft"
    layers = len(target_for(language_model(family)).layers)
    pair = load(str(folder), str(write_draft(drafted, num_target_layers=layers)), quiet=True)
    done = rounds(replace(pair, eos_ids=frozenset()), [1, 2, 3], Options(max_tokens=12))
    assert [t for round_ in done for t in round_.tokens] == plain_ids(family, [1, 2, 3], 12)


def test_what_mlx_lm_keeps_in_float32_stays_so(tmp_path: Path) -> None:
    """The decay of a recurrent layer, in a model that otherwise runs in bfloat16."""
    folder = write_family(tmp_path / "target", "qwen3_5")
    lm = load(str(folder), speculate=False, dtype="bfloat16", quiet=True).target.model
    assert lm.layers[0].linear_attn.A_log.dtype == mx.float32
    assert lm.layers[0].linear_attn.dt_bias.dtype == mx.bfloat16


def test_without_a_draft(target: Path) -> None:
    pair = load(str(target), speculate=False, quiet=True)
    assert pair.draft is None
    assert pair.draft_name is None
    assert pair.target.taps == ()


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_while_loading(tmp_path: Path, bits: int) -> None:
    hidden = {"hidden_size": 64, "head_dim": 16}
    target = tmp_path / "target"
    write_target(target, **hidden)
    from mlx_lm.models import llama

    model = llama.Model(llama.ModelArgs.from_dict({**TARGET, **hidden}))
    tensors = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(target / "model.safetensors"), tensors)
    folder = write_draft(tmp_path / "draft", **hidden)
    config = DraftConfig.from_dict({**DRAFT, **hidden}, "config")
    from dflash_mlx.drafts.dflash import DFlashDraft

    tensors = dict(tree_flatten(DFlashDraft(config).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    pair = load(str(target), str(folder), bits=bits, draft_bits=bits, quiet=True)
    assert pair.draft is not None
    layer, drafted = pair.target.layers[0].self_attn.q_proj, pair.draft.layers[0].self_attn.k_proj
    for linear in (layer, drafted):
        assert isinstance(linear, nn.QuantizedLinear)
        assert linear.bits == bits
    plain = generate(pair, [1, 2, 3], Options(max_tokens=20, speculate=False))
    assert generate(pair, [1, 2, 3], Options(max_tokens=20)) == plain


def test_types(target: Path, draft: Path) -> None:
    pair = load(str(target), str(draft), dtype="bfloat16", quiet=True)
    assert pair.draft is not None
    assert pair.target.dtype == pair.draft.dtype == mx.bfloat16
    # Features overflow float16 in the fusion, so the draft goes another way.
    pair = load(str(target), str(draft), dtype="float16", quiet=True)
    assert pair.draft is not None
    assert (pair.target.dtype, pair.draft.dtype) == (mx.float16, mx.bfloat16)


WRONG_FITS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 64}, "hidden size 64 against 48"),
    ({"vocab_size": 100}, "vocabulary 100 against 64"),
    ({"num_target_layers": 36}, "made for 36 target layers, the target has 4"),
    (
        {
            "num_target_layers": None,
            "dflash_config": {"mask_token_id": 1, "target_layer_ids": [1, 7]},
        },
        "taps layer 7 of a target with 4 layers",
    ),
    (
        {"dflash_config": {"mask_token_id": 64, "target_layer_ids": [0]}},
        "mask token 64 outside 64 tokens",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_FITS, ids=[m for _, m in WRONG_FITS])
def test_a_draft_for_another_target(
    target: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = write_draft(tmp_path / "other", **changes)
    with pytest.raises(PairError, match=f"does not fit .*: {message}"):
        load(str(target), str(folder), quiet=True)


def test_no_draft_is_known(target: Path) -> None:
    with pytest.raises(PairError, match=r"no draft is known .*--draft.*--no-draft"):
        load(str(target), quiet=True)


def test_names_that_lead_nowhere(target: Path) -> None:
    for name in ("no-such-model", "", "a/b/c"):
        with pytest.raises(ModelNotFoundError, match="not a folder, not a hub id"):
            load(name, quiet=True)
    with pytest.raises(ModelNotFoundError, match="no draft 'nonsense'"):
        load(str(target), "nonsense", quiet=True)


def test_a_family_we_do_not_know(tmp_path: Path, draft: Path) -> None:
    folder = write_target(tmp_path / "t", model_type="mamba2")
    with pytest.raises(UnsupportedError, match=r"type 'mamba2'.*supported are .*llama"):
        load(str(folder), str(draft), quiet=True)


def test_a_checkpoint_that_wants_its_own_python(tmp_path: Path, draft: Path) -> None:
    folder = write_target(tmp_path / "t", model_file="evil.py")
    (folder / "evil.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UnsupportedError, match="model_file"):
        load(str(folder), str(draft), quiet=True)


@pytest.mark.parametrize("which", ["target", "draft"])
def test_truncated_weights(which: str, target: Path, draft: Path) -> None:
    path = {"target": target, "draft": draft}[which] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(str(target), str(draft), quiet=True)


@pytest.mark.parametrize("which", ["target", "draft"])
def test_a_missing_field(which: str, target: Path, draft: Path) -> None:
    path = {"target": target, "draft": draft}[which] / "config.json"
    raw = json.loads(path.read_text())
    del raw["hidden_size"]
    path.write_text(json.dumps(raw))
    with pytest.raises(DFlashError, match="hidden"):
        load(str(target), str(draft), quiet=True)


def test_tensors_of_a_draft_by_name(draft: Path) -> None:
    config = DraftConfig.from_dict(DRAFT, "config")
    path = draft / "model.safetensors"
    tensors: dict[str, mx.array] = mx.load(str(path))  # type: ignore[assignment]
    whole = dict(tensors)
    mx.eval(whole)

    def refused(message: str, **changes: mx.array | None) -> None:
        new = {k: v for k, v in {**whole, **changes}.items() if v is not None}
        mx.save_safetensors(str(path), new)
        with pytest.raises(CheckpointError, match=message):
            read_draft(draft, config)

    refused("fc.weight", **{"fc.weight": None})
    refused("lm_head.weight", **{"lm_head.weight": mx.zeros((2, 2))})
    refused(r"norm.weight", **{"norm.weight": mx.zeros((49,))})


def test_the_prefix_of_some_exports(draft: Path) -> None:
    path = draft / "model.safetensors"
    tensors: dict[str, mx.array] = mx.load(str(path))  # type: ignore[assignment]
    mx.eval(tensors)
    mx.save_safetensors(str(path), {f"model.{k}": v for k, v in tensors.items()})
    read_draft(draft, DraftConfig.from_dict(DRAFT, "config"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "bits is 3, expected 4 or 8"),
        ({"draft_bits": 16}, "draft bits is 16, expected 4 or 8"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load("smollm2-135m", quiet=True, **options)


def test_the_embedded_draft_reads() -> None:
    folder = embedded_draft()
    config = DraftConfig.from_dict(json.loads((folder / "config.json").read_text()), "embedded")
    network = read_draft(folder, config, dense=True)
    vocabulary = network.vocabulary
    assert vocabulary is not None and vocabulary.size == config.draft_vocab_size == 10240
    parameters = sum(v.size for _, v in tree_flatten(network.parameters()))
    books = 2 * config.vocab_size * 48
    assert parameters - vocabulary.size == 12_280_704 + books + 48 * config.hidden_size
