"""What `bench kernels` is made of: cases, agreement with references, times, figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from dflash_mlx.bench.kernels import agreement, heads, race, results, timing
from dflash_mlx.bench.kernels.cases import Case, Entry, Kind, arrays, packed, widened
from dflash_mlx.bench.kernels.products import open_experts
from dflash_mlx.bench.kernels.results import Timed
from dflash_mlx.bench.kernels.table import ENTRIES
from dflash_mlx.bench.kernels.timing import ALONE, Pace, interleaved

BY_NAME = {entry.name: entry for entry in ENTRIES}
FLOAT32 = Kind(mx.float32, 4, 0)


def first_case(entry: Entry, rows: int = 3, kind: Kind = FLOAT32) -> Case:
    return entry.open(next(iter(entry.small.values())), kind)(rows)


# Cases.


@pytest.mark.parametrize("entry", ENTRIES, ids=BY_NAME)
def test_mlx_computes_the_same(entry: Entry) -> None:
    """In float32, where MLX on a CPU has no roundings of its own: else the ratio means nothing."""
    for sizes in entry.small.values():
        make = entry.open(sizes, FLOAT32)
        for rows in (entry.least, 3, 16):
            case = make(rows)
            truth = agreement.expected(entry, case)
            for name, call in case.stock.items():
                found = arrays(case.view(call(*case.sets[0], *case.hint(0))))
                assert agreement.error(found, truth[: len(found)]) < 0.2, (name, rows)


def test_many_pairs_of_experts_are_sorted_too() -> None:
    entry = BY_NAME["gather_quantized_matmul_small"]
    for sizes in entry.small.values():
        case = open_experts(sizes, FLOAT32)(40)
        assert list(case.stock) == ["gather_qmm", "gather_qmm, sorted"]
        truth = agreement.expected(entry, case)
        for call in case.stock.values():
            assert agreement.error(call(*case.sets[0], *case.hint(0)), truth) < 0.2


@pytest.mark.parametrize("name", ["gather_quantized_matmul_small", "head_topk", "head_topk_dense"])
def test_what_saves_memory_gives_what_the_reference_gives(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "PART", 33)
    entry = BY_NAME[name]
    for sizes in entry.small.values():
        case = entry.open(sizes, Kind(mx.bfloat16, 4 if entry.bits else None, 0))(3)
        assert case.truth
        whole = entry.reference(*widened(case.sets[0]), **case.options)
        found = arrays(case.truth())
        assert agreement.error(found, arrays(whole)) < 0.05
        assert [a.dtype for a in found] == [a.dtype for a in arrays(whole)]


def test_either_of_two_equal_tokens_is_right_and_a_worse_one_is_wrong() -> None:
    entry = BY_NAME["head_topk_dense"]
    case = entry.open({"n": 50, "k": 32, "keep": 3, "group": 32}, Kind(mx.float32, None, 0))(4)
    truth = agreement.expected(entry, case)
    ids, values, lse = entry.reference(*case.sets[0], k=4)

    def error(places: list[int], lse: mx.array = lse) -> float:
        which = mx.array(places)
        return agreement.error(case.view((ids[:, which], values[:, which], lse)), truth)

    assert error([0, 1, 2]) < 0.1
    assert error([2, 0, 1]) < 0.1
    assert error([0, 1, 3]) > 1
    assert error([0, 1, 1]) > 1
    assert error([0, 1, 2], lse + 0.01) > 1
    swapped = (ids[:, mx.array([0, 1, 3])], values[:, :3], lse)
    assert agreement.error(case.view(swapped), truth) > 1


@pytest.mark.parametrize("entry", ENTRIES, ids=BY_NAME)
def test_sizes_of_real_models_fit(entry: Entry) -> None:
    for sizes in (*entry.sizes.values(), *entry.small.values()):
        assert sizes.get("k", 0) % sizes.get("group", 1) == 0
        assert sizes.get("heads", 0) % sizes.get("kv_heads", sizes.get("key_heads", 1)) == 0
        assert sizes.get("chosen", 1) <= sizes.get("experts", 1)
    assert {frozenset(s) for s in entry.sizes.values()} == {
        frozenset(s) for s in entry.small.values()
    }


def test_bytes_and_flops() -> None:
    quantised = first_case(BY_NAME["quantized_matmul_small"], 3, Kind(mx.bfloat16, 4, 0))
    n, k = 40, 96
    assert quantised.bytes == n * k // 2 + 2 * 2 * n * k // 32 + 2 * 3 * (k + n)
    assert quantised.flops == 2 * 3 * n * k
    attention = first_case(BY_NAME["block_attention"], 3)
    heads, kv_heads, dim, context = 4, 2, 64, 70
    assert attention.bytes == 4 * (2 * kv_heads * (context + 3) * dim + 2 * heads * 3 * dim)
    assert attention.flops == 4 * heads * dim * (71 + 72 + 73)
    delta = first_case(BY_NAME["gated_delta_round"], 4)
    heads, keys, dim = 4, 2, 32
    rows = 4 * (keys * dim + heads * dim + 2 * heads)
    assert delta.bytes == 4 * 2 * heads * dim**2 + 6 * rows + 4 * 4 * (keys + heads) * dim
    experts = first_case(BY_NAME["gather_quantized_matmul_small"], 1, Kind(mx.bfloat16, 4, 0))
    each = 2 * (16 * 64 // 2 + 2 * 2 * 16 * 64 // 32)
    assert experts.bytes == 2 * each + 2 * (64 + 2 * 16)


def test_calls_rotate_through_more_memory_than_a_cache_holds() -> None:
    assert Kind(mx.bfloat16, 4, 256).sets(50) == 6
    assert Kind(mx.bfloat16, 4, 256).sets(300) == 1
    assert Kind(mx.bfloat16, 4, 2**28).sets(100) == 64
    case = BY_NAME["matmul_small"].open({"n": 8, "k": 8}, Kind(mx.float32, None, 5 * 8 * 8 * 4))(2)
    assert len({w.sum().item() for _, w in case.sets}) == 5
    assert race.ROTATION >= 2**28


def test_few_rows_choose_other_experts_each_time() -> None:
    sizes = {"experts": 6, "chosen": 2, "n": 8, "k": 32, "group": 32, "fused": 0}
    one = 8 * 32 // 2
    case = open_experts(sizes, Kind(mx.float32, 4, 12 * one))(1)
    assert len({id(weight) for _, weight, _ in case.sets}) == 2
    assert len(case.sets) == len(case.hints) == 6
    assert len({tuple(sorted(indices[0].tolist())) for _, _, indices in case.sets}) > 1


def test_random_weights_use_every_bit() -> None:
    for bits in (3, 4, 8):
        weight = packed(64, 128, bits=bits, group=32, dtype=mx.float32)
        assert weight.shape == (64, 128)
        unit = (weight._replace(scales=mx.ones((64, 4)), biases=mx.zeros((64, 4)))).dequantised()
        assert sorted(set(unit.reshape(-1).tolist())) == list(range(2**bits))
    y = mx.random.normal((16, 128)) @ weight.dequantised().T
    assert 0.3 < mx.sqrt((y * y).mean()).item() < 3


# Agreement.


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_rounding_agrees_and_one_product_left_out_does_not(dtype: mx.Dtype) -> None:
    entry = BY_NAME["matmul_small"]
    case = entry.open({"n": 64, "k": 17408}, Kind(dtype, None, 0))(16)
    truth = agreement.expected(entry, case)
    assert all(a.dtype == mx.float32 for a in truth)
    x, w = widened(case.sets[0])
    assert agreement.error((x @ w.T).astype(dtype), truth) < 0.6
    short = (x[:, :-1] @ w[:, :-1].T).astype(dtype)
    assert agreement.error(short, truth) > 1


def test_what_cannot_be_compared_is_wrong() -> None:
    truth = [mx.ones((2, 3)), mx.array([1, 2])]
    error = agreement.error
    assert error((truth[0], truth[1]), truth) == 0
    assert error((truth[0], mx.array([1, 3])), truth) == float("inf")
    assert error((truth[0] * mx.nan, truth[1]), truth) == float("inf")
    assert error((truth[0] * mx.inf, truth[1]), truth) == float("inf")
    assert error((truth[0][:1], truth[1]), truth) == float("inf")
    assert error(truth[0], truth) == float("inf")


# Times.


def test_calls_wait_for_each_other_and_take_turns_with_weights(tmp_path: Path) -> None:
    """Only the end of a chain is asked for: what it does not wait for would be left out."""
    case = BY_NAME["matmul_small"].open({"n": 8, "k": 8}, Kind(mx.float32, None, 3 * 8 * 8 * 4))(2)
    seen: list[mx.array] = []

    def way(inputs: Any, _: Any) -> tuple[mx.array, mx.array]:
        seen.append(inputs[1])
        return inputs[0] @ inputs[1].T, mx.erf(inputs[0])

    end = timing._chain(case, way, start=2, calls=4)
    mx.export_to_dot(str(tmp_path / "graph"), end)
    graph = (tmp_path / "graph").read_text()
    assert [graph.count(f'"{op}"') for op in ("Matmul", "Erf")] == [4, 4]
    weights = [w for _, w in case.sets]
    assert [next(i for i, w in enumerate(weights) if w is s) for s in seen] == [2, 0, 1, 2]


def test_waiting_changes_no_input() -> None:
    for before in (mx.ones(3), mx.array([[mx.nan]]), mx.array([2, 3]), mx.array([mx.inf])):
        for array in (mx.arange(4), mx.random.normal((2, 2)).astype(mx.bfloat16)):
            found = timing._behind(array, before)
            assert found.dtype == array.dtype and mx.array_equal(found, array)


def sampled(monkeypatch: pytest.MonkeyPatch, pace: Pace) -> tuple[timing.Times, list[str]]:
    """Times where the waiting takes 1 s, "a" 3 s and "b" 5 s, and 1 s more with each sample."""
    order: list[str] = []
    clock = [0.0]
    cost = {"a": 3.0, "b": 5.0, ALONE: 1.0}
    ways = {name: lambda inputs, hints: inputs[0] for name in ("a", "b")}

    def sample(case: Case, way: Any, first: int, calls: int) -> float:
        name = next((n for n, w in ways.items() if w is way), ALONE)
        order.append(name)
        seconds = cost[name] + (order.count(name) - 1) * (name != ALONE)
        clock[0] += seconds
        return seconds

    monkeypatch.setattr(timing, "_sample", sample)
    monkeypatch.setattr(timing, "_calls", lambda case, way, seconds: 7)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    times = interleaved(first_case(BY_NAME["matmul_small"]), ways, pace)
    return times, order


def test_all_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    times, order = sampled(monkeypatch, Pace(repeat=3, seconds=1e9, warm=0))
    assert order[3:] == ["a", "b", ALONE, "b", ALONE, "a", ALONE, "a", "b"]
    assert times.calls == 7
    assert times.waiting == 1
    # The first of each is not counted: it warms up.
    assert times.samples == {"a": [3, 4, 5], "b": [5, 6, 7]}


def test_a_case_ends_in_time_but_not_before_three_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    times, _ = sampled(monkeypatch, Pace(repeat=50, seconds=1, warm=0))
    assert len(times.samples["a"]) == 3


def test_a_chain_is_as_long_as_a_sample_needs() -> None:
    case = first_case(BY_NAME["matmul_small"])
    assert timing._calls(case, lambda inputs, _: inputs[0] @ inputs[1].T, 0.0) == 1
    assert timing._calls(case, lambda inputs, _: inputs[0] @ inputs[1].T, 1e9) == 512


def one_result(ours: Sequence[Timed], stock: Sequence[Timed]) -> results.Result:
    return results.Result(
        "op", "8 x 8", {"n": 8}, "float32", None, 4, ours, stock, bytes=10**6, flops=10**9
    )


def test_figures() -> None:
    fast = Timed("kernel", 64, 0.1, None, [1e-6, 2e-6, 3e-6, 4e-6, 5e-6])
    slow = Timed("kernel", 32, 0.1, None, [6e-6] * 5)
    stock = [
        Timed("one", None, 0.1, None, [9e-6, 6e-6, 6e-6, 4e-6, 2.5e-6]),
        Timed("two", None, 0.1, None, [7e-6] * 5),
    ]
    result = one_result([slow, fast], stock)
    assert result.rival is stock[0] and result.best is fast
    assert result.ratio(fast) == pytest.approx((2.0, 1.0, 3.0))
    record = result.as_dict(copy_gb_s=500.0)
    assert record["fastest_stock"] == "one"
    best = record["ours"][1]
    assert (best["low_us"], best["median_us"], best["high_us"]) == (2.0, 3.0, 4.0)
    assert (best["gb_s"], best["tflop_s"], best["of_copy"]) == (333.3, 333.3, 0.6667)
    assert (best["ratio"], best["ratio_low"], best["ratio_high"]) == (2.0, 1.0, 3.0)
    assert results.ladders([result, result]) == {"op": {32: 2.0, 64: 1.0}}
    assert results.ladders([one_result([fast], stock)]) == {}


def test_what_the_clock_cannot_tell_has_no_figures() -> None:
    result = one_result([Timed("kernel", 64, 0.0, None, [0.0, 0.0])], [])
    (way,) = result.as_dict(100.0)["ours"]
    assert way["status"] == "ok"
    assert [way[name] for name in ("median_us", "gb_s", "ratio")] == [0.0, None, None]
