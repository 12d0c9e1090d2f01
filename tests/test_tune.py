"""Measuring, keeping and handing on what rounds take."""

import json
import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from dflash_mlx.errors import CheckpointError, UsageError
from dflash_mlx.generation import rounds
from dflash_mlx.options import AUTO, Options
from dflash_mlx.sampling import Sampling
from dflash_mlx.tune import choose, measure, store
from dflash_mlx.tune.choose import costs_of, policy_of
from dflash_mlx.tune.measure import PLAIN
from dflash_mlx.tune.store import Record, records, setting_of, write

from .choosers import linear
from .families import draft_config, make_pair, plain_ids, prompt_of, random_draft
from .tiny import tiny_pair

PROMPT = prompt_of(20)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "cache_root", lambda: tmp_path)
    return tmp_path / "tune"


@pytest.mark.parametrize("family", ["llama-sliding", "qwen3_5", "deepseek_v3"])
@pytest.mark.parametrize("compiled", [False, True])
def test_every_kind_of_round_is_measured(family: str, compiled: bool) -> None:
    pair = make_pair(family, random_draft(draft_config(block_size=4)))
    pair.compiles = compiled
    seen: list[tuple[int, int]] = []
    curve = measure.measure(pair, (40, 600), 1, lambda *done: seen.append(done))
    assert curve.widths == (1, 2, 3, 4)
    assert curve.contexts == (40, 600)
    assert seen[-1] == (24, 24)
    assert [done for done, _ in seen] == list(range(1, 25))
    # Rounds of decoding go on as if nothing had been measured.
    done = rounds(pair, PROMPT, Options(max_tokens=30))
    assert [t for r in done for t in r.tokens] == plain_ids(family, PROMPT, 30)


def test_a_limit_ends_the_repetition() -> None:
    pair = make_pair("llama", random_draft(draft_config(block_size=2)))
    seen: list[tuple[int, int]] = []
    measure.measure(pair, (20, 30), 50, lambda *done: seen.append(done), limit=0.0)
    assert len(seen) == 2 * (measure.FEWEST + 1) * 4
    assert seen[-1][0] < seen[-1][1] == 2 * 51 * 4


def test_parts_follow_from_rounds() -> None:
    times = {PLAIN: 1.0, 0: 0.3, 1: 1.5, 2: 1.6, 4: 2.2}
    curve = measure._curve((1, 2, 4), (10,), [times])
    assert curve.host == pytest.approx(0.2)
    assert curve.verify[0] == pytest.approx((1.0, 1.1, 1.7))
    assert [curve.round(w, 10) for w in (1, 2, 4)] == pytest.approx([1.5, 1.6, 2.2])


def test_noise_makes_no_pass_free() -> None:
    times = {PLAIN: 1.0, 0: 0.9, 1: 1.1, 2: 0.8, 4: 1.0}
    curve = measure._curve((1, 2, 4), (10,), [times])
    assert curve.host == 0
    assert min(curve.verify[0]) == 1.0


@pytest.mark.parametrize(
    ("pair", "contexts", "message"),
    [
        (lambda: tiny_pair(draft=False), (9,), "nothing to tune"),
        (lambda: tiny_pair(max_context=30), (40, 50), "holds 30 tokens; give a shorter length"),
    ],
)
def test_what_cannot_be_measured(pair: Any, contexts: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure.measure(pair(), contexts)


def record(**changes: Any) -> Record:
    setting = setting_of(tiny_pair())
    return Record(type(setting)(**{**setting.__dict__, **changes}), linear(4, 0.1))


def test_a_record_is_kept_and_read() -> None:
    kept = record()
    path = write(kept)
    assert store.read(path) == kept
    assert [path.name for path in path.parent.iterdir()] == [path.name]
    assert list(records()) == [kept]


def test_what_differs_is_kept_apart() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"mlx": "0.99"},
        {"machine": "Apple M9"},
        {"target_bytes": 1},
        {"kernels": "on"},
        {"compiled": True},
        {"block": 5},
    ]
    assert len({write(record(**change)) for change in changes}) == len(changes)
    assert len(list(records())) == len(changes)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 2}', json.dumps(record().as_dict() | {"seconds": {}})],
)
def test_a_damaged_file_is_measured_anew(
    text: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = tiny_pair()
    path = write(Record(setting_of(pair), linear(4, 0.1)))
    path.write_text(text)
    monkeypatch.setattr(choose, "measure", lambda pair, **_: linear(4, 0.7))
    with caplog.at_level(logging.WARNING, "dflash_mlx"):
        assert costs_of(pair).curve == linear(4, 0.7)
    assert [str(path) in line.getMessage() for line in caplog.records] == [True]
    assert store.read(path) == Record(setting_of(pair), linear(4, 0.7))


def test_once_per_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(pair: Any, **_: Any) -> Any:
        calls.append(pair.name)
        return linear(4, 0.1)

    monkeypatch.setattr(choose, "measure", counted)
    for _ in range(2):
        pair = tiny_pair()
        assert costs_of(pair) is costs_of(pair)
    assert calls == ["tiny"]
    other = tiny_pair()
    other.compiles = True
    costs_of(other)
    assert calls == ["tiny"] * 2


def test_the_first_answer_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "CONTEXTS", (30,))
    pair = make_pair("llama", random_draft(draft_config(block_size=3)))
    pair.draft_name = None
    done = rounds(pair, PROMPT, Options(max_tokens=30, block=AUTO))
    assert [t for r in done for t in r.tokens] == plain_ids("llama", PROMPT, 30)
    (kept,) = records()
    assert kept.setting.target == "llama"


def test_what_is_learned_stays_with_the_pair() -> None:
    pair = tiny_pair()
    write(Record(setting_of(pair), linear(4, 0.1)))
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        options = Options(block=AUTO, sampling=sampling)
        first, second = policy_of(pair, options), policy_of(pair, options)
        assert first._calibration is second._calibration
        assert first._costs is second._costs is pair.costs
    assert len(pair.calibrations) == 2
    seeded = policy_of(pair, Options(block=AUTO, sampling=Sampling(temperature=1.0), seed=1))
    assert seeded._calibration not in pair.calibrations.values()
    assert seeded._costs is not pair.costs


def test_a_record_of_other_kinds_of_fields() -> None:
    raw = record().as_dict()
    for change in ({"machine": 3}, {"block": "x"}, {"compiled": 1}, {"mlx": None}):
        with pytest.raises(CheckpointError, match="file"):
            Record.from_dict(raw | change, "file")


def test_zeros_stand_for_any_context() -> None:
    """What is read there is finite: rows are written behind a stretch of zeros."""
    pair = make_pair("llama-sliding", random_draft(draft_config(block_size=4)))
    timed = measure._Rounds(pair, 700)
    assert timed.time(4) > 0
    assert timed._decoder.session.cache.length == 700
    assert all(mx.isfinite(a).all() for a in timed._decoder.session.cache.arrays())
