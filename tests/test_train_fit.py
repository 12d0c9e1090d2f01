"""Training on a tiny target: it learns by heart, survives being killed, and is exported whole."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from dflash_mlx.checkpoint import read_config, read_tensors
from dflash_mlx.config import DFlash2, DraftConfig
from dflash_mlx.loading import read_draft
from dflash_mlx.train.arrays import flat
from dflash_mlx.train.evaluate import Count, Evaluation
from dflash_mlx.train.export import export, finished, prepared
from dflash_mlx.train.fit import StepReport
from dflash_mlx.train.lora import limit
from dflash_mlx.train.schedule import Schedule
from dflash_mlx.train.settings import DraftSettings, FitSettings
from dflash_mlx.train.start import initialise, new_config, random_start, spread_taps
from dflash_mlx.train.state import read_log

from .families import CONFIGS, draft_config
from .training import Training, texts

SELECTING = {"dflash2": DFlash2(2, 16, 8, 4)}
# 31 tokens behind the first in rounds of at most 8: four rounds.
BEST = 31 / 4


class Killed(Exception):
    pass


def kill_at(step: int) -> Any:
    def watch(report: Any) -> None:
        if isinstance(report, StepReport) and report.step == step:
            raise Killed

    return watch


def published(training: Training) -> dict[str, Any]:
    """The config.json of its draft."""
    raw = new_config(CONFIGS["llama"], DraftSettings(layers=2, taps=(0, 2)), 63, "tiny")
    return raw | {"intermediate_size": 64, "head_dim": 16, "rms_norm_eps": 1e-6}


def test_eight_texts_are_learnt_by_heart(tmp_path: Path) -> None:
    """By real decoding, and by the exported folder as well."""
    training = Training(tmp_path / "fit", epochs=80, anchors=16, learning_rate=5e-3)
    assert training.judged() < 2
    reports: list[Any] = []
    training.fit().run(reports.append)
    assert training.judged() > 0.95 * BEST
    assert reports[-1].loss < 0.2 < reports[0].loss
    assert min(reports[-1].accuracy) > 0.9
    raw = published(training)
    export(training.draft, training.scale, "float32", raw, tmp_path / "draft")
    config = DraftConfig.from_dict(read_config(tmp_path / "draft"), "exported")
    assert training.judged(read_draft(tmp_path / "draft", config)) > 0.95 * BEST


def test_dflash_2_learns_by_heart(tmp_path: Path) -> None:
    training = Training(
        tmp_path, count=3, config=SELECTING, epochs=60, anchors=16, learning_rate=5e-3
    )
    training.fit().run()
    assert training.judged() > 0.9 * BEST
    stored = finished(training.draft, training.scale, mx.float32)
    # Its own parts took part.
    assert mx.abs(stored["candidate_selector.successor_codebook.weight"]).max().item() > 1e-3
    assert mx.abs(stored["layers.0.mlp_conv.kernel_projection.weight"]).max().item() > 1e-3


@pytest.mark.parametrize(
    "changes",
    [{}, {"negatives": 8, "loss": "dpace"}, {"train": "lora", "lora_rank": 4}],
    ids=["", "dpace", "lora"],
)
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, changes: Any) -> None:
    """The same weights to the last bit, and one line a step in the log."""
    settings = {"epochs": 6, "pack_tokens": 100, "packs": 2, "save_every": 4, **changes}
    whole = Training(tmp_path / "whole", count=5, **settings)
    whole_start = mx.array(whole.draft.fc.weight)
    end = whole.fit().run()
    assert end.step == whole.fit().schedule.steps > 8
    for step in (1, 6, 8):
        with pytest.raises(Killed):
            Training(tmp_path / "killed", count=5, **settings).fit().run(kill_at(step))
    again = Training(tmp_path / "killed", count=5, **settings)
    steps: list[int] = []
    again.fit().run(lambda r: steps.append(r.step))
    assert steps[0] == 8
    for name, value in flat(whole.draft.parameters()).items():
        assert mx.array_equal(value, flat(again.draft.parameters())[name]).item(), name
    assert not mx.array_equal(whole.draft.fc.weight, whole_start).item()
    curves = [[line["loss"] for line in read_log(t.folder)] for t in (whole, again)]
    assert curves[0] == curves[1] and len(curves[0]) == end.step


def test_a_log_line_cut_off_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert [line["step"] for line in read_log(tmp_path)] == [1]


def test_the_best_is_kept_and_waiting_ends(tmp_path: Path) -> None:
    training = Training(tmp_path, count=2, epochs=20)
    found = iter([1.5, 2.0, 1.9, 1.8, 3.0])
    kept: list[int] = []
    seen: list[Any] = []

    def evaluate(_: Any) -> Evaluation:
        return Evaluation(*[{"": Count(round(1000 * next(found)), 1000)}] * 3)

    fit = training.fit(
        keep=lambda _: kept.append(len(seen)), evaluate=evaluate, evaluate_every=2, patience=2
    )
    end = fit.run(seen.append)
    assert end.best == 2.0 and end.step == 8
    assert len(kept) == 2
    assert [r.step for r in seen if isinstance(r, Evaluation)] == [2, 4, 6, 8]


@pytest.mark.parametrize("train", ["fc", "lora"])
def test_less_than_all_is_trained(tmp_path: Path, train: str) -> None:
    training = Training(tmp_path, count=4, epochs=8)
    before = finished(training.draft, training.scale, mx.float32)
    limit(training.draft, train, rank=4, seed=0)
    # What LoRA adds is nothing at first.
    at_first = finished(training.draft, training.scale, mx.float32)
    assert at_first.keys() == before.keys()
    assert all(mx.allclose(at_first[name], before[name]).item() for name in before)
    reports: list[Any] = []
    training.fit().run(reports.append)
    assert reports[-1].loss < reports[0].loss
    after = finished(training.draft, training.scale, mx.float32)
    changed = {name for name in before if not mx.array_equal(before[name], after[name]).item()}
    linear = {name for name in before if "_proj" in name}
    assert changed == {"fc.weight"} | (linear if train == "lora" else set())
    made = prepared(training.draft, training.scale, mx.float32, mx.float32, None)
    assert made.parameters().keys() == training.draft.parameters().keys()


def test_an_export_replaces_the_one_before(tmp_path: Path) -> None:
    training = Training(tmp_path, count=2)
    for stored in ("float32", "bfloat16"):
        export(training.draft, training.scale, stored, {"a": stored}, tmp_path / "draft")
    assert json.loads((tmp_path / "draft" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    tensors = read_tensors(tmp_path / "draft")
    assert {v.dtype for v in tensors.values()} == {mx.bfloat16}
    assert [p.name for p in tmp_path.iterdir()] == ["draft"]


def test_codebooks_are_stored_bare(tmp_path: Path) -> None:
    training = Training(tmp_path, count=2, config=SELECTING)
    export(training.draft, training.scale, "float32", {}, tmp_path / "draft")
    names = read_tensors(tmp_path / "draft").keys()
    assert "candidate_selector.predecessor_codebook" in names


def test_a_new_draft_reads_the_target_as_its_last_layers_do(tmp_path: Path) -> None:
    """Where the target's shapes agree, so that training has somewhere to start from."""
    training = Training(tmp_path, count=2, config={"intermediate_size": 80, "head_dim": 12})
    source = training.pair.target.layers[-1]
    assert mx.array_equal(training.draft.layers[1].mlp.up_proj.weight, source.mlp.up_proj.weight)
    assert mx.array_equal(
        training.draft.layers[1].self_attn.q_proj.weight, source.self_attn.q_proj.weight
    )
    assert training.draft.layers[1].self_attn.q_norm.weight[0].item() != 1
    fresh = Training(tmp_path, count=2, config={"intermediate_size": 80, "head_dim": 12})
    initialise(fresh.draft, fresh.pair.target, fresh.scale, 0)
    for name, value in flat(training.draft.parameters()).items():
        assert mx.array_equal(value, flat(fresh.draft.parameters())[name]).item()
    random_start(fresh.draft, 0)
    assert not mx.array_equal(fresh.draft.layers[1].mlp.up_proj.weight, source.mlp.up_proj.weight)


def test_taps_follow_the_published_rule() -> None:
    assert spread_taps(36, 5) == (1, 9, 17, 25, 33)
    assert spread_taps(30, 5) == (1, 8, 14, 20, 27)
    assert spread_taps(4, 5) == (1,)
    assert spread_taps(36, 1) == (18,)


@pytest.mark.parametrize("family", [n for n, c in CONFIGS.items() if c.get("model_type")])
def test_every_target_has_a_config_for_a_new_draft(family: str) -> None:
    raw = new_config(CONFIGS[family], DraftSettings(layers=2), 63, family)
    config = DraftConfig.from_dict(raw, family)
    assert config.num_layers == 2 and not any(config.causal)
    both = new_config(CONFIGS[family], DraftSettings(dflash2=True, window=32), 63, family)
    assert DraftConfig.from_dict(both, family).dflash2 is not None
    alone = DraftSettings(dflash2=True, convolutions=False, selector_rank=32)
    extra = DraftConfig.from_dict(new_config(CONFIGS[family], alone, 63, family), family).dflash2
    assert extra is not None and (extra.conv_kernel_size, extra.selector_rank) == (0, 32)


def test_a_schedule_follows_from_its_seed() -> None:
    config = draft_config()
    settings = FitSettings(epochs=2, pack_tokens=80, packs=1, anchors=3)

    def steps(seed: int) -> list[list[int]]:
        made = Schedule(
            texts(5), replace(settings, seed=seed), config.block_size, config.mask_token_id
        )
        return [p.anchors.tolist() for step in range(made.steps) for p in made.packs(step)]

    assert steps(0) == steps(0) != steps(1)
    assert len(steps(0)) == 6 and len(steps(0)[0]) == 6
    half = len(steps(0)) // 2
    assert steps(0)[:half] != steps(0)[half:]  # anchors are drawn anew in every epoch
    rates = Schedule(texts(5), settings, 8, 63)
    assert rates.learning_rate(0) == pytest.approx(settings.learning_rate)
    assert rates.learning_rate(5) < rates.learning_rate(1)
