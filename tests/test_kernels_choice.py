"""What decides between our kernels and MLX's operations, and what happens when one fails."""

import logging
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from dflash_mlx import doctor
from dflash_mlx.decode import DraftDecoder
from dflash_mlx.errors import UsageError
from dflash_mlx.generation import rounds
from dflash_mlx.kernels import linear, rules
from dflash_mlx.kernels.chip import Chip, this_chip
from dflash_mlx.kernels.choice import OFF, Example, Kernels, Op, Run
from dflash_mlx.kernels.head import Head
from dflash_mlx.kernels.linear import product
from dflash_mlx.kernels.overview import overview
from dflash_mlx.kernels.quantized_matmul_small import PackedWeight
from dflash_mlx.machine import Machine
from dflash_mlx.options import Options
from dflash_mlx.trial import COUNTED, Trial
from tests.metal_cpu import Options as Emulation

from .families import draft_config as configured
from .families import make_pair, prompt_of, random_draft

M1, M2_MAX, M4, M5 = Chip(13), Chip(14, "s"), Chip(16), Chip(17)


def test_the_chip_is_read_from_metals_name_for_it() -> None:
    assert Chip.of("applegpu_g13g") == M1
    assert Chip.of("applegpu_g14s") == M2_MAX
    assert Chip.of("applegpu_g16") == M4
    assert Chip.of("x86_64") is None


@pytest.mark.skipif(mx.metal.is_available(), reason="a Mac has one")
def test_there_is_no_chip_without_metal() -> None:
    assert this_chip() is None
    assert not Kernels("auto").active
    assert Kernels("on").active
    assert overview(Kernels("on")) == {}


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="kernels is 'yes', expected one of auto, on, off"):
        Kernels("yes")


def widths(pays: Callable[..., bool], chip: Chip, **call: int) -> list[int]:
    return [rows for rows in range(1, 20) if pays(chip, rows=rows, **call)]


def test_rules() -> None:
    assert widths(rules.quantised, M1) == widths(rules.quantised, M4) == list(range(6, 17))
    assert widths(rules.quantised, M5) == list(range(6, 13))
    assert widths(rules.quantised_scalar, M1) == [2, 3, 4, 5]
    assert widths(rules.quantised_scalar, M4) == []
    assert widths(rules.dense, M1) == list(range(2, 17))
    assert widths(rules.dense, M4) == list(range(6, 17))
    assert widths(rules.dense, M5) == []
    one, several = {"count": 1, "packed": True}, {"count": 16, "packed": True}
    assert widths(rules.head, M5, **one) == list(range(6, 13))
    assert widths(rules.head, M1, count=1, packed=False) == list(range(2, 17))
    assert widths(rules.head, M5, **several) == list(range(2, 20))
    assert widths(rules.experts, M4) == list(range(2, 17))
    short, long = {"group": 4, "slots": 512}, {"group": 4, "slots": 1024}
    assert widths(rules.attention, M4, **short) == list(range(9, 20))
    assert widths(rules.attention, M4, **long) == list(range(2, 20))
    assert widths(rules.attention, M4, group=6, slots=512) == list(range(6, 20))


class Double:
    """An operation that doubles its argument, with a kernel that fails as told."""

    def __init__(self, most: int = 256, factor: float = 2.0) -> None:
        self.most, self.factor = most, factor
        self.tried: list[int] = []
        self.op = Op("double", lambda x: 2 * x, self.metal, (256, 128, 64), self.pays)

    def metal(self, x: mx.array, threads: int) -> mx.array:
        self.tried.append(threads)
        if threads > self.most:
            raise RuntimeError(f"Thread group size ({threads}) is greater than {self.most}\nmore")
        return self.factor * x

    @staticmethod
    def pays(chip: Chip, *, rows: int) -> bool:
        return rows > 3

    def pick(self, kernels: Kernels, rows: int = 8, kind: str = "a") -> Any:
        return kernels.pick(self.op, kind, lambda: Example((mx.ones(4),)), rows=rows)


def test_a_kernel_is_tried_once_and_runs_where_it_pays() -> None:
    double, kernels = Double(), Kernels("auto", M4)
    assert double.pick(kernels, rows=3) is None
    assert double.tried == []
    for _ in range(2):
        assert double.pick(kernels)(mx.array([3.0])).item() == 6
    assert double.tried == [256, 256, 256]  # the example, then two calls
    assert kernels.proven == ["double"]
    double.pick(kernels, kind="b")
    assert len(double.tried) == 4


def test_on_ignores_the_rule_and_off_takes_none() -> None:
    assert Double().pick(Kernels("on", M4), rows=1) is not None
    assert Double().pick(Kernels("off", M4)) is None
    assert Double().pick(OFF) is None


def test_without_metal_the_definition_runs_if_asked_for() -> None:
    double = Double()
    assert double.pick(Kernels("on", None)) is double.op.reference
    assert double.pick(Kernels("auto", None)) is None
    assert double.tried == []


def test_the_chip_may_refuse_large_threadgroups(caplog: pytest.LogCaptureFixture) -> None:
    double, kernels = Double(most=64), Kernels("auto", M4)
    run = double.pick(kernels)
    assert double.tried == [256, 128, 64]
    assert run(mx.array([3.0])).item() == 6
    assert double.tried[-1] == 64
    assert not caplog.records


@pytest.mark.parametrize(
    ("double", "reason"),
    [
        (Double(most=32), "refused: Thread group size (64) is greater than 32"),
        (Double(factor=2.1), "wrong result on a small example"),
        (Double(factor=float("nan")), "wrong result on a small example"),
    ],
)
def test_a_bad_kernel_is_out_with_one_warning(
    double: Double, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = Kernels("auto", M4)
    assert all(double.pick(kernels, kind=kind) is None for kind in "aab")
    assert kernels.refused == {"double": reason}
    assert kernels.version == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"kernel double is out of use: {reason}; MLX's own operation runs instead"
    )


# In decoding


def wide_pair(kernels: Kernels) -> Any:
    pair = make_pair("qwen3", random_draft(configured(block_size=8)))
    pair.kernels = kernels
    return pair


def ids(pair: Any, **options: Any) -> list[int]:
    done = rounds(pair, prompt_of(5), Options(max_tokens=40, **options))
    return [token for round_ in done for token in round_.tokens]


def at_once(x: mx.array, w: mx.array) -> mx.array:
    raise RuntimeError("[metal] out of something")


def when_computed(x: mx.array, w: mx.array) -> mx.array:
    """As a kernel that fails on a GPU: what was made of it is of no use either."""
    singular = mx.linalg.inv(mx.zeros((2, 2)), stream=mx.cpu)
    return linear.DENSE.reference(x, w) + singular.sum()


@pytest.mark.parametrize("fails", [at_once, when_computed])
@pytest.mark.parametrize("compiled", [True, False])
def test_a_kernel_that_fails_in_a_round_is_replaced(
    fails: Run, compiled: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = ids(wide_pair(OFF))
    calls, most = 0, 20 if compiled else 50  # a compiled round is traced once

    def breaks(x: mx.array, w: mx.array, **_: Any) -> mx.array:
        nonlocal calls
        calls += 1
        return fails(x, w) if calls > most else linear.DENSE.reference(x, w)

    op = Op("matmul_small", linear.DENSE.reference, breaks, (256,), linear.DENSE.pays)
    monkeypatch.setattr(linear, "DENSE", op)
    pair = wide_pair(Kernels("on", M4))
    monkeypatch.setattr("dflash_mlx.drafts.dflash.attend", lambda *_, **__: None)
    monkeypatch.setattr("dflash_mlx.targets.base.Target.best", lambda *_: None)
    assert ids(pair, compiled=compiled) == wanted
    assert calls > most
    assert pair.kernels.mode == "off"
    (record,) = caplog.records
    assert "kernel all is out of use: [" in record.getMessage()


def test_auto_races_rounds_and_keeps_to_the_faster_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ways = [0.0], []

    def round_(self: DraftDecoder, anchor: int, fast: bool) -> Any:
        ways.append(fast)
        clock[0] += 1.0 if fast else 2.0
        return self._round(anchor, self._step)

    monkeypatch.setattr(DraftDecoder, "_guarded", round_)
    monkeypatch.setattr("dflash_mlx.decode.time.perf_counter", lambda: clock[0])
    pair = wide_pair(Kernels("auto", M4))
    ids(pair)
    assert ways[:4] == [True, False, False, True]
    assert set(ways[2 * COUNTED + 4 :]) == {True}
    assert [trial.ratio for trial in pair.trials.values()] == [0.5]


def race(trial: Trial, with_: float, without: float) -> list[bool]:
    ways = []
    for _ in range(4 * COUNTED):
        ways.append(trial.choose())
        if trial.record(ways[-1], with_ if ways[-1] else without):
            break
    return ways


def test_a_trial_takes_turns_and_leaves_the_first_round_out() -> None:
    trial = Trial()
    trial.record(True, 50.0)  # compiled
    ways = race(trial, 1.0, 1.2)
    assert abs(sum(ways) + 1 - (len(ways) - sum(ways))) <= 2
    assert trial.winner is True and trial.choose()
    assert trial.ratio == pytest.approx(1 / 1.2)
    other = Trial()
    race(other, 1.2, 1.0)
    assert other.winner is False and not other.choose()


def test_rounds_that_become_far_longer_are_raced_again() -> None:
    trial = Trial()
    race(trial, 1.0, 1.2)
    for _ in range(100):
        trial.record(True, 1.4)  # within what a growing context does
    assert trial.winner is True
    for _ in range(COUNTED):
        trial.record(True, 9.0)
    assert trial.winner is None
    race(trial, 9.0, 1.3)
    assert trial.winner is False


def test_one_slow_round_is_no_reason() -> None:
    trial = Trial()
    race(trial, 1.0, 1.2)
    for second in [1.0, 30.0, 1.0] * 20:
        trial.record(True, second)
    assert trial.winner is True


def test_the_overview_tries_every_kernel(emulate: Any) -> None:
    emulate(Emulation())
    found = overview(Kernels("auto", M4))
    assert found["quantized_matmul_small"] == "6 to 16 rows"
    assert found["block_attention"] == "2 to 16 rows"
    assert found["head_topk"] == "2 to 16 rows"
    assert found["quantized_matmul_rows"] == "not for this chip"
    assert overview(Kernels("auto", M1))["quantized_matmul_rows"] == "2 to 5 rows"
    assert len(found) >= 9
    newest = overview(Kernels("auto", M5))
    assert newest["matmul_small"] == "not for this chip"
    assert newest["quantized_matmul_small"] == "6 to 12 rows"


def packed_layer() -> PackedWeight:
    weight = mx.random.normal((96, 64), key=mx.random.key(2))
    return PackedWeight(*mx.quantize(weight, 32, 4), 32, 4)


@pytest.mark.parametrize(
    ("mode", "chip", "chosen"),
    [
        ("auto", M1, {"quantized_matmul_rows"}),
        ("auto", M4, set()),
        ("on", M1, {"quantized_matmul_small"}),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_few_rows_without_matrix_units(
    mode: str, chip: Chip, chosen: set[str], fused: bool, emulate: Any
) -> None:
    emulate(Emulation())
    kernels, weight = Kernels(mode, chip), packed_layer()
    arguments = (weight, weight) if fused else (weight,)
    run = product(kernels, 3, mx.float32, *arguments)
    assert set(kernels.proven) == chosen
    if run:
        x = mx.random.normal((3, 64), key=mx.random.key(1))
        wanted = linear.QUANTISED.reference(x, *arguments)
        assert mx.allclose(run(x, *arguments), wanted, rtol=1e-5, atol=1e-5)


def test_a_head_with_a_bias_is_left_to_mlx() -> None:
    layer = nn.Linear(64, 96)
    head = Head(layer, layer.weight, Kernels("on", None))
    assert head.best(mx.ones((2, 64)), 3) is None
    assert mx.allclose(head(mx.ones((2, 64))), layer(mx.ones((2, 64))), atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_a_head_gives_its_largest_outputs(packed: bool, emulate: Any) -> None:
    emulate(Emulation())
    layer: Any = nn.Linear(64, 96, bias=False)
    layer = layer.to_quantized(32, 4) if packed else layer
    weight = linear.stored(layer)
    assert weight is not None
    x = mx.random.normal((9, 64), key=mx.random.key(1))
    found = Head(layer, weight, Kernels("on", M4)).best(x, 5, 90)
    assert found is not None
    assert found.ids.tolist() == mx.argsort(-layer(x)[:, :90], axis=-1)[:, :5].tolist()


def test_doctor_names_a_kernel_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def overviewed(kernels: Kernels) -> dict[str, str]:
        kernels.retire("block_attention", "refused: no")
        return {"block_attention": "refused: no"}

    monkeypatch.setattr("dflash_mlx.kernels.overview.overview", overviewed)
    problems: list[str] = []
    found = doctor._kernels(Machine("M4", "metal", 8, 6), problems)
    assert found == {"block_attention": "refused: no"}
    assert problems == ["kernel block_attention is out of use: refused: no"]
    assert doctor._kernels(Machine("EPYC", "cpu", 8, 8), problems) == {}
