"""`dflash-mlx train` from prompts to a draft that loads, and on from wherever it was stopped."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dflash_mlx.checkpoint import read_config, read_tensors
from dflash_mlx.cli import app
from dflash_mlx.config import DraftConfig
from dflash_mlx.loading import Pair, load, read_draft
from dflash_mlx.train import project as stages
from dflash_mlx.train.project import Project
from dflash_mlx.train.settings import FILE, read_settings

from . import convert_cases as cases
from .families import COMMON
from .tiny import VOCAB, tiny_pair

SMALL = ["--max-tokens", "10", "--layers", "1", "--epochs", "1", "--packs", "1", "--pack", "64"]
SMALL += ["--heldout", "0.3", "--eval-prompts", "2", "--block", "4", "--lr", "0.001"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pair:
    """The tiny pair in place of every model, and a file of prompts."""
    pair = tiny_pair(draft=False)
    config = {"model_type": "llama", **COMMON, "vocab_size": VOCAB}
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(stages, "load", lambda *args, **kwargs: pair)
    monkeypatch.setattr(stages, "find_target", lambda *args, **kwargs: tmp_path / "target")
    lines = [json.dumps({"prompt": f"say {i}", "kind": "ab"[i % 2]}) for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return pair


def train(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, args), "--quiet"])


def began(tmp_path: Path, *more: str) -> tuple[str | Path, ...]:
    return ("tiny", "--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "out", *more)


def test_all_stages(tiny: Pair, tmp_path: Path) -> None:
    done = train(*began(tmp_path, *SMALL, "--json"))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    out = tmp_path / "out"
    assert found["draft"] == str(out / "draft") and found["steps"] > 1
    assert found["tokens_per_round"] >= 1
    config = DraftConfig.from_dict(read_config(out / "draft"), "exported")
    assert (config.num_layers, config.block_size, config.taps) == (1, 4, (1,))
    read_draft(out / "draft", config)
    assert "svg" in (out / "curve.html").read_text()
    assert read_settings(out / FILE).data.prompts == str(tmp_path / "prompts.jsonl")
    again = train("evaluate", out, "--json")
    assert again.exit_code == 0, again.output
    assert sorted(json.loads(again.stdout)["by_kind"]) == ["a", "b"]
    table = train("evaluate", out, "--count", "2").stdout
    assert "n-gram table" in table and "all" in table


@pytest.mark.parametrize(
    "more",
    [
        ["--dflash2", "--draft-vocabulary", "50"],
        ["--no-store", "--loss", "dpace", "--negatives", "8", "--save-memory"],
    ],
    ids=["dflash2", "other ways"],
)
def test_all_stages_otherwise(tiny: Pair, tmp_path: Path, more: list[str]) -> None:
    done = train(*began(tmp_path, *SMALL, *more))
    assert done.exit_code == 0, done.output
    folder = tmp_path / "out" / "draft"
    config = DraftConfig.from_dict(read_config(folder), "exported")
    assert (config.dflash2 is not None) == ("--dflash2" in more)
    vocabulary = read_draft(folder, config).vocabulary
    assert (vocabulary is not None and vocabulary.size == 50) == ("--dflash2" in more)
    assert train("evaluate", tmp_path / "out").exit_code == 0
    stored = list((tmp_path / "out" / "features").glob("texts-*"))
    assert bool(stored) == ("--no-store" not in more)


def test_stage_by_stage_is_the_same(tiny: Pair, tmp_path: Path) -> None:
    whole = tmp_path / "out"
    assert train(*began(tmp_path, *SMALL)).exit_code == 0
    whole.rename(tmp_path / "whole")
    for stage in (("generate", *began(tmp_path, *SMALL)), ("features", whole), ("fit", whole)):
        done = train(*stage)
        assert done.exit_code == 0, done.output
    for file in ("draft/model.safetensors", "draft/config.json", "draft.json", FILE):
        assert (whole / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_training_goes_on_where_it_was_killed(
    tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Project, "fit", killed)
        assert train(*began(tmp_path, *SMALL)).exit_code == 130
    assert "go on with --resume" in train(*began(tmp_path, *SMALL)).stderr
    done = train("--out", tmp_path / "out", "--resume")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "draft" / "config.json").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "OUT", "--resume"], "holds no training to resume"),
        (["--out", "OUT"], "name a model and --prompts"),
        (["tiny", "--out", "OUT"], "data is missing"),
        (["tiny", "--prompts", "none.jsonl", "--out", "OUT"], "none.jsonl cannot be read"),
        (["tiny", "--prompts", "PROMPTS", "--out", "OUT", "--only", "fc"], "name one with `start`"),
        (["tiny", "--prompts", "PROMPTS", "--out", "OUT", "--block", "1"], "expected 2 to 64"),
        (["fit", "OUT"], "cannot be read"),
    ],
)
def test_what_cannot_begin_leaves_nothing(
    tiny: Pair, tmp_path: Path, args: list[str], message: str
) -> None:
    names = {"OUT": str(tmp_path / "out"), "PROMPTS": str(tmp_path / "prompts.jsonl")}
    done = train(*(names.get(a, a) for a in args))
    assert done.exit_code == 1 and message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_fit_keeps_its_settings(tiny: Pair, tmp_path: Path) -> None:
    assert train(*began(tmp_path, *SMALL)).exit_code == 0
    out = tmp_path / "out"
    settings = read_settings(out / FILE)
    replace(settings, fit=replace(settings.fit, anchors=3)).write(out)
    assert "begun with other settings" in train("fit", out).stderr


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in 8 bits"])
def test_a_draft_is_trained_further(
    whole: bool, tiny: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.toml").write_text("[draft]\nintermediate_size = 32\n")  # a whole group
    assert train(*began(tmp_path, *SMALL, "--settings", tmp_path / "s.toml")).exit_code == 0
    first = (tmp_path / "out").rename(tmp_path / "first")
    bits = {"fc": 8, "attention": 8, "mlp": 8, "group_size": 32}
    few = cases.convert(str(first / "draft"), tmp_path / "few", parts="draft", drafter=bits)
    start = first / "draft" if whole else few
    further = ["--start", str(start), "--only", "lora", "--epochs", "1", "--packs", "1"]
    rest = ["--max-tokens", "10", "--heldout", "0.3", "--eval-prompts", "2"]
    done = train(*began(tmp_path, *further, *rest))
    assert done.exit_code == 0, done.output
    old, new = (read_config(folder) for folder in (start, tmp_path / "out" / "draft"))
    assert "quantization" in old or whole
    assert {k: v for k, v in old.items() if not k.startswith("quant")} | {"torch_dtype": None} == (
        new | {"torch_dtype": None}
    )
    assert not [name for name in read_tensors(tmp_path / "out" / "draft") if "scales" in name]


@pytest.mark.slow
def test_the_embedded_target_gets_a_draft(tmp_path: Path) -> None:
    """A draft of one layer that has seen three texts: it loads and decodes, no more."""
    prompts = [{"prompt": f"What is {i} + {i}?", "split": "train"} for i in range(3)]
    prompts.append({"prompt": "What is 7 + 7?", "split": "test"})
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    settings = "[evaluation]\nmax_tokens = 4\n"
    (tmp_path / "s.toml").write_text(settings)
    done = train(
        *("smollm2-135m", "--prompts", tmp_path / "prompts.json", "--out", tmp_path / "out"),
        *("--settings", tmp_path / "s.toml", "--max-tokens", "8", "--layers", "1"),
        *("--epochs", "2", "--packs", "1", "--negatives", "256", "--json"),
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["steps"] == 2
    pair = load("smollm2-135m", str(tmp_path / "out" / "draft"), quiet=True)
    assert pair.draft is not None and pair.draft.config.mask_token_id == 16
