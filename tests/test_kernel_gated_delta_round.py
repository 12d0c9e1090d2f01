"""The gated delta kernel: against its reference, against mlx-lm, bit by bit, and what it moves."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.gated_delta import gated_delta_ops

from dflash_mlx.kernels.gated_delta_round import (
    THREADS,
    Round,
    Rows,
    gated_delta_round_metal,
    gated_delta_round_reference,
)
from tests.metal_cpu import MetalKernel, Options, coverage
from tests.metal_cpu.fixture import MATRIX

Emulate = Callable[[Options], list[MetalKernel]]
Case = tuple[mx.array, Rows, mx.array, Rows]  # state, old rows, q, block

# batch, key heads, value heads, Dk, Dv, old rows, rows of the block
SHAPES = [
    (1, 2, 4, 128, 16, 16, 16),
    (2, 1, 3, 20, 5, 3, 1),
    (1, 1, 1, 7, 9, 1, 5),
    (1, 2, 2, 64, 33, 9, 2),
]
SMALL = (1, 2, 4, 36, 10, 5, 4)
LIMITS = {mx.float32: 2e-6, mx.float16: 1e-3, mx.bfloat16: 8e-3}


def rows_of(shape: tuple[int, ...], count: int, dtype: mx.Dtype) -> tuple[mx.array, Rows]:
    """q and the rest of some rows, normalised and gated as a layer has them; the decay is exact."""
    batch, groups, heads, dk, dv, *_ = shape
    q, k = (mx.random.normal((batch, count, groups, dk)) for _ in range(2))
    q, k = (x / mx.linalg.norm(x, axis=-1, keepdims=True) for x in (q * dk**-0.5, k))
    v = mx.random.normal((batch, count, heads, dv))
    g = mx.random.uniform(0.5, 1, (batch, count, heads))
    beta = mx.random.uniform(0, 1, (batch, count, heads))
    return q.astype(dtype), Rows(k.astype(dtype), v.astype(dtype), g, beta.astype(dtype))


def case(shape: tuple[int, ...], dtype: mx.Dtype = mx.float32) -> Case:
    mx.random.seed(sum(shape))
    batch, _, heads, dk, dv, old, new = shape
    state = mx.random.normal((batch, heads, dv, dk))
    return (state, rows_of(shape, old, dtype)[1], *rows_of(shape, new, dtype))


def run(which: Callable[..., Round], arrays: Case, kept: int, **more: object) -> Round:
    state, old, q, block = arrays
    return which(state, old, mx.array([kept], mx.int32), q, block, **more)


def cut(rows: Rows, start: int, stop: int) -> Rows:
    return Rows(*(a[:, start:stop] for a in rows))


def error(found: mx.array | None, wanted: mx.array | None) -> float:
    """Largest difference, relative to the largest value."""
    assert found is not None and wanted is not None and found.shape == wanted.shape
    wanted = wanted.astype(mx.float32)
    return float(mx.abs(found.astype(mx.float32) - wanted).max() / mx.abs(wanted).max())


def same_bits(found: mx.array | None, wanted: mx.array | None) -> bool:
    """Whether two arrays are equal bit for bit (of numpy, which tells -0 from 0)."""
    assert found is not None and wanted is not None and found.dtype == wanted.dtype
    a, b = (np.array(x.astype(mx.float32)).view(np.uint32) for x in (found, wanted))
    return np.array_equal(a, b)


def widened(arrays: Case) -> Case:
    """The same values in float32."""
    state, old, q, block = arrays
    wide = [Rows(*(a.astype(mx.float32) for a in rows)) for rows in (old, block)]
    return state, wide[0], q.astype(mx.float32), wide[1]


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_the_reference_is_mlx_lms_recurrence(kept: int):
    state, old, q, block = arrays = case((2, 2, 6, 40, 12, 3, 7))
    found = run(gated_delta_round_reference, arrays, kept)
    if kept:
        head = cut(old, 0, kept)
        _, state = gated_delta_ops(head.k, *head, state)
    assert error(found.committed, state) < 1e-6
    y, state = gated_delta_ops(q, *block, state)
    assert error(found.y, y) < 1e-6
    assert error(found.behind, state) < 1e-6


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_and_reference_agree(shape: tuple[int, ...], dtype: mx.Dtype, emulate: Emulate):
    emulate(Options(order="random"))
    arrays = case(shape, dtype)
    for kept in {0, shape[5] // 2, shape[5]}:
        found = run(gated_delta_round_metal, arrays, kept)
        wanted = run(gated_delta_round_reference, widened(arrays), kept)
        assert found.y.dtype == dtype
        assert error(found.y, wanted.y) < LIMITS[dtype]
        assert error(found.committed, wanted.committed) < 2e-6
        assert error(found.behind, wanted.behind) < 2e-6


@pytest.mark.parametrize("how", MATRIX)
def test_every_order_and_the_checked_build(how: str, emulate: Emulate):
    emulate(MATRIX[how])
    arrays = case(SMALL)
    for kept, with_behind in ((0, True), (3, False), (5, True)):
        more = {"with_behind": with_behind}
        found = run(gated_delta_round_metal, arrays, kept, **more)
        wanted = run(gated_delta_round_reference, arrays, kept, **more)
        assert error(found.y, wanted.y) < 2e-6
        assert error(found.committed, wanted.committed) < 2e-6
        assert (found.behind is None) == (wanted.behind is None) == (not with_behind)
        if with_behind:
            assert error(found.behind, wanted.behind) < 2e-6


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("how", ["asc", "unfused"])
def test_a_row_alone_has_the_bits_it_has_among_sixteen(how: str, dtype: mx.Dtype, emulate: Emulate):
    """Behind i replayed rows, row i decoded alone gives the y and the state of the block."""
    emulate(MATRIX[how])
    state, _, q, block = case((1, 1, 2, 36, 6, 1, 16), dtype)
    whole = run(gated_delta_round_metal, (state, block, q, block), 0)
    for i in range(16):
        alone = (state, block, q[:, i : i + 1], cut(block, i, i + 1))
        found = run(gated_delta_round_metal, alone, i)
        part = (state, block, q[:, : i + 1], cut(block, 0, i + 1))
        wanted = run(gated_delta_round_metal, part, i + 1)
        assert same_bits(found.y[:, 0], whole.y[:, i])
        assert same_bits(found.behind, wanted.committed)
        assert same_bits(wanted.committed, run(gated_delta_round_metal, part, 0).behind)
    assert same_bits(found.behind, whole.behind)


def test_the_compiler_fuses_nothing_by_itself(emulate: Emulate):
    """All multiply-adds are explicit: else it could fuse those of replay and block differently."""
    arrays = case(SMALL)
    found = []
    for how in ("asc", "unfused"):
        emulate(MATRIX[how])
        found.append(run(gated_delta_round_metal, arrays, 3))
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


def test_a_multiply_add_rounds_once(emulate: Emulate):
    """What is left of a product and its rounded value, as the output of a state left as it was."""
    emulate(MATRIX["unfused"])
    x = 1 + 2.0**-12
    state = mx.pad(mx.array([[[[-(1 + 2.0**-11), x]]]]), [(0, 0)] * 3 + [(0, 14)])
    q = mx.pad(mx.array([[[[1, x]]]]), [(0, 0)] * 3 + [(0, 14)])
    still = Rows(q, mx.ones((1, 1, 1, 1)), mx.ones((1, 1, 1)), mx.zeros((1, 1, 1)))
    assert run(gated_delta_round_metal, (state, still, q, still), 1).y.item() == 2.0**-24


@pytest.mark.parametrize("which", [gated_delta_round_metal, gated_delta_round_reference])
def test_rows_that_were_not_kept_do_not_matter(which: Callable[..., Round], emulate: Emulate):
    emulate(Options())
    state, old, q, block = case(SMALL)
    wanted = run(which, (state, old, q, block), 2)
    nothing = Rows(*(mx.where(mx.arange(5)[:, *[None] * (a.ndim - 2)] < 2, a, mx.nan) for a in old))
    found = run(which, (state, nothing, q, block), 2)
    assert all(same_bits(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("which", [gated_delta_round_metal, gated_delta_round_reference])
def test_more_than_all_old_rows_are_all(which: Callable[..., Round], emulate: Emulate):
    emulate(Options(checked=True))
    found, wanted = (run(which, case(SMALL), kept) for kept in (9, 5))
    assert all(same_bits(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("threads", THREADS)
def test_the_size_of_threadgroups_changes_no_bit(threads: int, emulate: Emulate):
    kernels = emulate(Options())
    arrays = case((1, 1, 2, 20, 70, 2, 3))
    wanted = run(gated_delta_round_metal, arrays, 1)
    found = run(gated_delta_round_metal, arrays, 1, threads=threads)
    assert kernels[-1].report.groups == 2 * -(-70 * 4 // threads)
    assert all(same_bits(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("with_behind", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8, 12, 16])
def test_the_state_is_read_once_and_written_once(rows: int, with_behind: bool, emulate: Emulate):
    kernels = emulate(Options(traffic=True))
    arrays = case((1, 1, 2, 128, 16, rows, rows))
    run(gated_delta_round_metal, arrays, rows, with_behind=with_behind)
    moved = kernels[-1].report.buffers
    size = arrays[0].nbytes
    assert moved["state"].passes == moved["state"].requested == 1
    assert moved["state"].read.lane_bytes == size
    assert moved["committed"].write.lane_bytes == size and not moved["committed"].read.lane_bytes
    assert moved["behind"].write.lane_bytes == (size if with_behind else 4)
    assert moved["y"].write.lane_bytes == moved["y"].size


def test_every_line_runs(emulate: Emulate):
    kernels = emulate(Options(coverage=True))
    run(gated_delta_round_metal, case(SMALL), 3)
    run(gated_delta_round_metal, case(SMALL), 3, with_behind=False)
    reports = [r for k in kernels for r in k.reports]
    coverage.check(reports, "gated_delta_round", "gated_delta_round header")


def wrong(**exchanged: mx.array) -> list[object]:
    """Arguments of which some are exchanged: `block_k` is the block's keys."""
    state, old, q, block = case(SMALL)
    named = {"state": state, "kept": mx.array([1], mx.int32), "q": q}
    parts = [named | {k: v for k, v in exchanged.items() if k in named}]
    given = parts[0]
    for prefix, rows in (("old", old), ("block", block)):
        inner = {k.removeprefix(prefix + "_"): v for k, v in exchanged.items() if prefix in k}
        given[prefix] = rows._replace(**inner)
    return [given[name] for name in ("state", "old", "kept", "q", "block")]


@pytest.mark.parametrize("which", [gated_delta_round_metal, gated_delta_round_reference])
@pytest.mark.parametrize(
    ("exchanged", "message"),
    [
        ({"state": mx.zeros((1, 4, 10, 36), mx.float16)}, "state is .*float16.*expected float32"),
        ({"state": mx.zeros((1, 1, 1, 7))}, "8 elements or more"),
        ({"kept": mx.array(1, mx.int32)}, "kept is .*expected int32"),
        ({"kept": mx.array([1.0])}, "kept is .*expected int32"),
        ({"q": mx.zeros((1, 4, 3, 36))}, "q is .*divides 4"),
        ({"q": mx.zeros((1, 4, 2, 35))}, r"q is .*\[1, 4, 2, 36\]"),
        ({"block_k": mx.zeros((1, 4, 1, 36))}, r"block.k is .*\[1, 4, 2, 36\]"),
        ({"block_v": mx.zeros((1, 4, 4, 11))}, r"block.v is .*\[1, 4, 4, 10\]"),
        ({"block_g": mx.zeros((1, 4, 4, 36))}, r"block.g is .*\[1, 4, 4\]"),
        ({"old_beta": mx.zeros((1, 5, 4), mx.int32)}, "old.beta is .*int32.*float type"),
        ({"old_k": mx.zeros((1, 0, 2, 36))}, "old.k is .*expected"),
    ],
)
def test_what_does_not_fit_is_refused(
    which: Callable[..., Round], exchanged: dict[str, mx.array], message: str
):
    with pytest.raises(ValueError, match=message):
        which(*wrong(**exchanged))


def test_threads_are_those_of_the_ladder():
    with pytest.raises(ValueError, match="threads is 48"):
        run(gated_delta_round_metal, case(SMALL), 1, threads=48)
