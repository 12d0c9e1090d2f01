"""The attention kernel: against its reference, against MLX, bit by bit, and what it reads."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from dflash_mlx.errors import UnsupportedError
from dflash_mlx.kernels.block_attention import (
    CHUNK,
    THREADS,
    block_attention_metal,
    block_attention_reference,
    chunk_count,
)
from dflash_mlx.kv import KVCache, masks, views
from tests.metal_cpu import MetalKernel, Options, coverage
from tests.metal_cpu.fixture import MATRIX

Emulate = Callable[[Options], list[MetalKernel]]
LIMITS = {mx.float32: 2e-6, mx.float16: 6e-4, mx.bfloat16: 4e-3}


class Case(NamedTuple):
    """A block in a cache."""

    heads: int = 4
    kv_heads: int = 2
    rows: int = 5
    dim: int = 64
    slots: int = 300
    start: int = 281
    window: int = 0
    ahead: bool = False
    sinks: mx.Dtype | None = None
    dtype: mx.Dtype = mx.float32


class Inputs(NamedTuple):
    q: mx.array
    k: mx.array
    v: mx.array
    start: mx.array


CASES = {
    "verification": Case(),
    "a full tile, 16 rows, 6 heads a group": Case(6, 1, 16, 256, 330, 301, dtype=mx.bfloat16),
    "one row, nothing before it": Case(2, 2, 1, 64, 1, 0),
    "one row of a context": Case(4, 2, 1, 128, 270, 255, dtype=mx.float16),
    "a block without a context": Case(4, 1, 16, 128, 64, 0, dtype=mx.float16),
    "a block that ends with the slots": Case(3, 3, 7, 192, 80, 73, dtype=mx.float16),
    "a draft's block": Case(8, 2, 16, 128, 290, 250, ahead=True, dtype=mx.bfloat16),
    "a draft's first block": Case(2, 1, 8, 64, 256, 0, ahead=True),
    "a window that begins inside a tile": Case(4, 2, 6, 64, 600, 500, 270),
    "a window not yet full": Case(4, 2, 9, 64, 300, 40, 1000),
    "a window narrower than the block": Case(2, 1, 12, 64, 300, 250, 3),
    "a window of one": Case(2, 1, 3, 64, 300, 255, 1),
    "a draft's window": Case(4, 4, 4, 64, 600, 513, 128, True, dtype=mx.bfloat16),
    "sinks": Case(9, 1, 4, 64, 300, 270, sinks=mx.float32, dtype=mx.bfloat16),
    "sinks in a window": Case(4, 2, 3, 64, 300, 200, 128, sinks=mx.bfloat16, dtype=mx.bfloat16),
    "head size 192": Case(2, 1, 5, 192, 40, 30),
    "head size 192, bfloat16": Case(5, 1, 3, 192, 70, 65, dtype=mx.bfloat16),
    "head size 256, float32": Case(2, 2, 9, 256, 40, 20, sinks=mx.float32),
    "larger chunks": Case(2, 1, 2, 64, 4900, 4700, dtype=mx.float16),
    "chunks of three sizes": Case(1, 1, 1, 64, 12600, 12500, dtype=mx.float16),
}


def inputs(case: Case, spread: float = 1.0) -> Inputs:
    """Random arrays; whatever no row sees is NaN."""
    mx.random.seed(case.rows)
    q = mx.random.normal((1, case.heads, case.rows, case.dim)) * spread
    k, v = (mx.random.normal((1, case.kv_heads, case.slots, case.dim)) for _ in range(2))
    slot = mx.arange(case.slots)[:, None]
    first = case.start - case.window + 1 if case.window else 0
    seen = (slot >= first) & (slot < case.start + case.rows)
    k, v = (mx.where(seen, x, mx.nan).astype(case.dtype) for x in (k, v))
    return Inputs(q.astype(case.dtype), k, v, mx.array([case.start], mx.int32))


def run(which: Callable[..., mx.array], case: Case, given: Inputs, **more: object) -> mx.array:
    sinks = None
    if case.sinks is not None:
        sinks = mx.linspace(-1, 3, case.heads).astype(case.sinks)
    how = {"window": case.window, "ahead": case.ahead, "sinks": sinks}
    return which(*given, scale=case.dim**-0.5, **how, **more)


def error(found: mx.array, case: Case, given: Inputs) -> float:
    """Largest difference to the reference in float32, relative to its largest value."""
    exact = Inputs(*(a.astype(mx.float32) for a in given[:3]), given.start)
    wanted = run(block_attention_reference, case, exact)
    assert found.dtype == case.dtype and found.shape == wanted.shape
    off = mx.abs(found.astype(mx.float32) - wanted).max() / mx.abs(wanted).max()
    return float(off) if not mx.isnan(off).item() else np.inf


def bits(x: mx.array) -> bytes:
    return np.array(x.astype(mx.float32)).tobytes()


@pytest.mark.parametrize("name", CASES)
def test_it_equals_the_reference(name: str, emulate: Emulate):
    emulate(Options())
    case = CASES[name]
    given = inputs(case)
    assert error(run(block_attention_metal, case, given), case, given) < LIMITS[case.dtype]


def test_scores_far_apart(emulate: Emulate):
    """The largest score is found late, in some rows early, and no power overflows."""
    emulate(Options())
    case = Case(slots=700, start=650)
    for spread in (40.0, 3000.0):
        given = inputs(case, spread)
        assert error(run(block_attention_metal, case, given), case, given) < 1e-3


@pytest.mark.parametrize("sinks", [None, mx.float32])
def test_scores_far_below_zero(sinks: mx.Dtype | None, emulate: Emulate):
    emulate(Options())
    case = Case(slots=300, start=290, sinks=sinks)
    given = inputs(case)
    given = given._replace(q=-300 * mx.abs(given.q), k=mx.abs(given.k))
    found = run(block_attention_metal, case, given)
    if sinks is None:
        assert error(found, case, given) < 1e-4
    else:
        assert mx.all(found == 0).item()  # the sinks take it all


def test_a_wrong_start_reads_nothing_else(emulate: Emulate):
    """It is known on the device alone, so no error can be raised for it."""
    emulate(Options(checked=True))
    for start in (-3, 298, 1000):
        case = Case()
        given = inputs(case)._replace(start=mx.array([start], mx.int32))
        run(block_attention_metal, case, given)


@pytest.mark.parametrize("options", MATRIX)
@pytest.mark.parametrize(
    "case",
    [
        Case(6, 2, 4, 64, 600, 530, sinks=mx.float32),
        Case(10, 1, 4, 64, 300, 200, 130, True, dtype=mx.bfloat16),
    ],
    ids=["causal", "window"],
)
def test_every_order(case: Case, options: str, emulate: Emulate):
    emulate(MATRIX[options])
    given = inputs(case)
    assert error(run(block_attention_metal, case, given), case, given) < LIMITS[case.dtype]


@pytest.mark.parametrize("name", ["one row of a context", "head size 192", "sinks in a window"])
def test_the_checked_build_finds_nothing(name: str, emulate: Emulate):
    kernels = emulate(Options(checked=True))
    run(block_attention_metal, CASES[name], inputs(CASES[name]))
    assert [len(k.reports) for k in kernels] == [1, 1]


@pytest.mark.parametrize("window", [0, 133])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_row_does_not_depend_on_its_neighbours(window: int, dtype: mx.Dtype, emulate: Emulate):
    emulate(Options())
    case = Case(6, 2, 16, 64, 560, 500, window, dtype=dtype)
    given = inputs(case)
    whole = run(block_attention_metal, case, given)
    for first, count in ((0, 1), (11, 1), (12, 1), (15, 1), (3, 8)):
        part = slice(first, first + count)
        some = given._replace(q=given.q[:, :, part], start=given.start + first)
        alone = run(block_attention_metal, case, some)
        assert bits(alone) == bits(whole[:, :, part]), (first, count)


def test_a_row_does_not_depend_on_the_slots_behind_it(emulate: Emulate):
    emulate(Options())
    case = Case(slots=4400, start=4090)
    given = inputs(case)
    short = run(
        block_attention_metal, case, given._replace(k=given.k[:, :, :4095], v=given.v[:, :, :4095])
    )
    assert bits(run(block_attention_metal, case, given)) == bits(short)


def test_a_row_does_not_depend_on_the_base_of_a_window(emulate: Emulate):
    """Moved by a whole chunk, the rows in view give the same bits."""
    emulate(Options())
    case = Case(slots=700, start=600, window=200)
    given = inputs(case)
    moved = Inputs(given.q, given.k[:, :, CHUNK:], given.v[:, :, CHUNK:], given.start - CHUNK)
    assert bits(run(block_attention_metal, case, given)) == bits(
        run(block_attention_metal, case, moved)
    )


def test_the_number_of_threads_changes_no_bit(emulate: Emulate):
    """Also where it is too small for all rows to share a threadgroup."""
    kernels = emulate(Options(checked=True))
    case = Case(14, 1, 15, 64, 70, 50)  # 27 tiles of 8 rows
    given = inputs(case)
    made = {t: bits(run(block_attention_metal, case, given, threads=t)) for t in THREADS}
    assert len(set(made.values())) == 1
    groups = [r.groups for r in kernels[0].reports]
    assert groups == [1, 2, 2, 3, 4, 7]
    assert [r.threads // r.groups for r in kernels[0].reports] == [896, 768, 512, 384, 256, 128]


TRAFFIC = {
    f"{rows} rows, {name}": case._replace(rows=rows, start=320 - rows)
    for rows in (1, 2, 4, 5, 8, 12, 16)
    for name, case in {"bfloat16": Case(8, 2, dim=128, slots=340, dtype=mx.bfloat16)}.items()
} | {
    "16 rows, window": Case(6, 1, 16, 64, 600, 496, 201),
    "16 rows, ahead": Case(4, 1, 16, 256, 300, 240, ahead=True, dtype=mx.float16),
}


@pytest.mark.parametrize("name", TRAFFIC)
def test_keys_and_values_are_read_once(name: str, emulate: Emulate):
    kernels = emulate(Options(traffic=True))
    case = TRAFFIC[name]
    run(block_attention_metal, case, inputs(case))
    first, merge = (k.report for k in kernels)
    seen = case.rows + (min(case.window - 1, case.start) if case.window else case.start)
    size = case.kv_heads * seen * case.dim * case.dtype.size
    for name in ("k", "v"):
        read = first.buffers[name].read
        assert read.group_lines == read.grid_lines == size / 64
        assert read.simd_bytes == read.lane_bytes == size  # asked for once
        assert read.coalescing == 1
    partial = first.buffers["partial"]
    assert partial.write.lane_bytes == partial.size
    assert merge.buffers["partial"].passes == merge.buffers["partial"].requested == 1
    if case.rows >= 8 and case.heads * case.rows % 8 == 0 and not case.window:
        useful = 4 * case.heads * case.rows * seen * case.dim
        assert first.matrix_flops == useful


@pytest.mark.parametrize("slots", [1, 255, 256, 257, 4096, 4097, 4608, 4609, 12288, 12289, 40000])
def test_chunks_hold_all_slots(slots: int):
    sizes = [256] * 16 + [512] * 16 + [1024] * 16 + [2048] * 16
    count = chunk_count(slots, 4, 0)
    assert sum(sizes[: count - 1]) < slots <= sum(sizes[:count])


@pytest.mark.parametrize("window", [1, 2, 240, 250, 256, 257, 1024])
@pytest.mark.parametrize("rows", [1, 2, 16])
def test_chunks_of_a_window_hold_what_it_sees(window: int, rows: int):
    spans = {(at + window + rows - 2) // CHUNK - at // CHUNK + 1 for at in range(CHUNK)}
    assert chunk_count(10**6, rows, window) == max(spans)
    assert chunk_count(300, rows, window) == min(2, max(spans))


SEEN = [
    (None, False, None, 300, 5),
    (None, True, None, 270, 16),
    (64, False, "sinks", 700, 5),
    (64, True, None, 700, 9),
    (512, False, None, 1300, 16),
]


@pytest.mark.parametrize(("window", "ahead", "sinks", "length", "rows"), SEEN)
def test_the_reference_is_what_the_models_do(window, ahead, sinks, length: int, rows: int):
    """MLX's attention over a cache and its masks, also where a window has moved its base."""
    cache = KVCache((window,))
    for start in range(0, length, 100):
        count = min(100, length - start)
        state = cache.begin(start, count, False)
        view = views(cache.windows, state, start)[0]
        view.update_and_fetch(*(mx.random.normal((1, 2, count, 64)) for _ in range(2)))
        cache.update({"layers": [view.rows]})
        cache.commit(count)
    state = cache.begin(length, rows, True)
    start, base = mx.array(length, mx.int32), state["base"][0]
    assert window != 64 or base.item() > 0
    mask = masks(cache.windows, state, start, rows, [ahead])[0]
    view = views(cache.windows, state, start)[0]
    k, v = view.update_and_fetch(*(mx.random.normal((1, 2, rows, 64)) for _ in range(2)))
    q = mx.random.normal((1, 6, rows, 64))
    given = mx.random.normal((6,)) if sinks else None
    wanted = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask, sinks=given)
    how = {"scale": 0.3, "window": window or 0, "ahead": ahead, "sinks": given}
    found = block_attention_reference(q, k, v, (start - base)[None], **how)
    assert mx.allclose(found, wanted, atol=1e-5).item()


def test_what_the_kernel_does_not_take_is_refused():
    for case, wanted in (
        (Case(dim=80), r"head size 80: the attention kernel has \(64, 128, 192, 256\)"),
        (Case(rows=17), "17 rows: the attention kernel takes 16 at most"),
    ):
        given = inputs(case)
        assert not mx.isnan(run(block_attention_reference, case, given)).any().item()
        with pytest.raises(UnsupportedError, match=wanted):
            run(block_attention_metal, case, given)
    given = inputs(Case())
    with pytest.raises(UnsupportedError, match=r"keys of mlx\.core\.float16 .* one type"):
        run(block_attention_metal, Case(), given._replace(k=given.k.astype(mx.float16)))


WRONG = [
    ({"q": mx.zeros((2, 4, 5, 64))}, "expected a float type"),
    ({"q": mx.zeros((4, 5, 64))}, "expected a float type"),
    ({"v": mx.zeros((1, 2, 300, 64), mx.int32)}, "expected a float type"),
    ({"v": mx.zeros((1, 2, 299, 64))}, "expected k and v of one shape"),
    ({"q": mx.zeros((1, 3, 5, 64))}, "heads that divide those of q"),
    ({"q": mx.zeros((1, 4, 5, 128))}, "the head size of q"),
    ({"q": mx.zeros((1, 4, 301, 64))}, "a slot for every row"),
    ({"start": mx.array(281, mx.int32)}, r"start is mlx\.core\.int32 \[\], expected int32 \[1\]"),
    ({"start": mx.array([281])[None]}, "expected int32"),
    ({"start": mx.array([281.0])}, "expected int32"),
    ({"window": -1}, "window is -1"),
    ({"sinks": mx.zeros(3)}, r"sinks is .* \[3\], expected a float type \[4\]"),
    ({"threads": 100}, "threads is 100, expected one of"),
]


@pytest.mark.parametrize(("exchanged", "wanted"), WRONG)
def test_wrong_arguments_are_named(exchanged: dict[str, object], wanted: str):
    arguments = inputs(Case())._asdict() | {"scale": 1.0} | exchanged
    with pytest.raises(ValueError, match=wanted):
        block_attention_metal(**arguments)
    if "threads" not in exchanged:
        with pytest.raises(ValueError, match=wanted):
            block_attention_reference(**arguments)


def test_every_line_runs(emulate: Emulate):
    kernels = emulate(Options(coverage=True))
    for case in (Case(rows=2), Case(rows=2, window=100, sinks=mx.float32)):
        run(block_attention_metal, case, inputs(case))
    reports = [r for k in kernels for r in k.reports]
    coverage.check(reports, "block_attention", "block_attention header", "block_attention_merge")
