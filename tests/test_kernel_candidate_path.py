"""The selector's walk: against its reference and a walk by hand, in every order, bit by bit."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from dflash_mlx.kernels.candidate_path import (
    THREADS,
    Path,
    candidate_path_metal,
    candidate_path_reference,
)
from tests.metal_cpu import MetalKernel, Options, coverage
from tests.metal_cpu.fixture import MATRIX

Emulate = Callable[[Options], list[MetalKernel]]
Case = tuple[mx.array, mx.array, mx.array]  # scores, ids, noise

SHAPES = [(15, 16), (1, 1), (1, 5), (2, 2), (7, 37), (31, 3), (16, 64), (2, 300)]  # n, k
BOTH = [candidate_path_reference, candidate_path_metal]


def case(n: int, k: int) -> Case:
    mx.random.seed(100 * n + k)
    scores = mx.random.normal((n, k, k))
    ids = mx.argsort(mx.random.uniform(shape=(n, 1000)), axis=-1)[:, :k].astype(mx.int32)
    return scores, ids, mx.random.gumbel((n, k))


def by_hand(scores: mx.array, ids: mx.array, noise: mx.array | None) -> Path:
    """One step after the other, in numpy."""
    table, names = np.array(scores), np.array(ids)
    added = np.zeros_like(table[:, 0]) if noise is None else np.array(noise)
    place, drafted, places, rows = 0, [], [], []
    for i in range(len(table)):
        rows.append(table[i, place])
        place = int(np.argmax(table[i, place] + added[i]))
        places.append(place)
        drafted.append(int(names[i, place]))
    return Path(mx.array(drafted), mx.array(places), mx.array(np.stack(rows)))


def same(found: Path, wanted: Path) -> bool:
    """Whether all outputs are equal bit for bit."""
    return all(
        a.shape == b.shape and np.array(a).tobytes() == np.array(b.astype(a.dtype)).tobytes()
        for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_it_is_the_walk_by_hand(
    n: int, k: int, sampled: bool, which: Callable[..., Path], emulate: Emulate
):
    emulate(Options(order="random"))
    scores, ids, noise = case(n, k)
    given = (scores, ids, noise if sampled else None)
    found = which(*given)
    assert same(found, by_hand(*given))
    assert found.drafted.dtype == found.places.dtype == mx.int32


@pytest.mark.parametrize("how", MATRIX)
def test_every_order_and_the_checked_build(how: str, emulate: Emulate):
    emulate(MATRIX[how])
    scores, ids, noise = case(5, 9)
    for added in (None, noise):
        wanted = candidate_path_reference(scores, ids, added)
        assert same(candidate_path_metal(scores, ids, added, threads=32), wanted)


@pytest.mark.parametrize("threads", THREADS)
def test_every_size_of_the_threadgroup(threads: int, emulate: Emulate):
    emulate(Options(checked=True))
    scores, ids, noise = case(15, 16)
    found = candidate_path_metal(scores, ids, noise, threads=threads)
    assert same(found, by_hand(scores, ids, noise))


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_a_shorter_walk_is_the_start_of_a_longer_one(sampled: bool, emulate: Emulate):
    emulate(Options())
    scores, ids, noise = case(16, 8)
    whole = candidate_path_metal(scores, ids, noise if sampled else None)
    for n in range(1, 16):
        part = candidate_path_metal(scores[:n], ids[:n], noise[:n] if sampled else None)
        assert same(part, Path(*(a[:n] for a in whole)))


@pytest.mark.parametrize("which", BOTH)
def test_of_equal_scores_the_first_is_taken(which: Callable[..., Path], emulate: Emulate):
    emulate(Options())
    scores = mx.array([[[1.0, 3, 3, 0]] * 4, [[-mx.inf] * 4] * 4, [[0.0, -0.0, 2, 2]] * 4])
    ids = mx.arange(12, dtype=mx.int32).reshape(3, 4)
    found = which(scores, ids)
    assert found.places.tolist() == [1, 0, 2] and found.drafted.tolist() == [1, 4, 10]


@pytest.mark.parametrize("which", BOTH)
def test_scores_may_differ_in_the_last_bit_only(which: Callable[..., Path], emulate: Emulate):
    emulate(Options())
    next_to_one = 1 + 2.0**-23
    scores = mx.array([[[1, next_to_one, 1]] * 3, [[-next_to_one, -1, -next_to_one]] * 3])
    ids = mx.arange(6, dtype=mx.int32).reshape(2, 3)
    for noise in (None, mx.zeros((2, 3))):
        assert which(scores, ids, noise).places.tolist() == [1, 1]


@pytest.mark.parametrize("which", BOTH)
def test_what_is_filtered_out_is_never_drawn(which: Callable[..., Path], emulate: Emulate):
    emulate(Options())
    _, ids, noise = case(15, 16)
    only = mx.arange(15) % 16
    scores = mx.where(mx.arange(16) == only[:, None], 0.0, -mx.inf)[:, None]
    found = which(mx.broadcast_to(scores, (15, 16, 16)), ids, noise)
    assert found.places.tolist() == only.tolist()


def test_scores_that_are_no_numbers_stay_inside(emulate: Emulate):
    emulate(Options(checked=True))
    _, ids, noise = case(4, 6)
    found = candidate_path_metal(mx.full((4, 6, 6), mx.nan), ids, noise)
    assert found.places.tolist() == [0] * 4


def test_the_path_is_drawn_from_its_rows(emulate: Emulate):
    """How often each candidate is drawn, given the one before, is the softmax of that row."""
    emulate(Options())
    scores, ids, _ = case(2, 3)
    counts = np.zeros((2, 3, 3))
    for noise in mx.random.gumbel((400, 2, 3)):
        first, second = candidate_path_metal(scores, ids, noise, threads=32).places.tolist()
        counts[0, 0, first] += 1
        counts[1, first, second] += 1
    wanted = np.array(mx.softmax(scores, axis=-1))
    for i, a in [(0, 0), (1, 0), (1, 1), (1, 2)]:
        total = counts[i, a].sum()
        spread = np.sqrt(wanted[i, a] * (1 - wanted[i, a]) / total)
        assert total > 20 and np.all(np.abs(counts[i, a] / total - wanted[i, a]) < 4.5 * spread)


def test_scores_are_read_once_for_the_choices(emulate: Emulate):
    kernels = emulate(Options(traffic=True))
    scores, ids, noise = case(15, 16)
    candidate_path_metal(scores, ids, noise)
    report = kernels[-1].report
    moved = report.buffers
    assert report.groups == 1 and moved["scores"].passes == 1
    assert moved["scores"].read.lane_bytes == scores.nbytes + moved["rows"].size
    assert all(moved[name].write.lane_bytes == moved[name].size for name in Path._fields)


def test_every_line_runs(emulate: Emulate):
    kernels = emulate(Options(coverage=True))
    scores, ids, noise = case(3, 4)
    candidate_path_metal(scores, ids)
    candidate_path_metal(scores, ids, noise)
    coverage.check([r for k in kernels for r in k.reports], "candidate_path")


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize(
    ("exchanged", "message"),
    [
        ({"scores": mx.zeros((3, 4, 5))}, r"scores is .*\[n, k, k\]"),
        ({"scores": mx.zeros((0, 4, 4))}, r"scores is .*\[n, k, k\]"),
        ({"scores": mx.zeros((3, 4, 4), mx.float16)}, r"scores is .*float16.*float32 \[3, 4, 4\]"),
        ({"ids": mx.zeros((3, 4), mx.uint32)}, r"ids is .*uint32.*int32 \[3, 4\]"),
        ({"ids": mx.zeros((4, 3), mx.int32)}, r"ids is .*int32 \[3, 4\]"),
        ({"noise": mx.zeros((3, 1))}, r"noise is .*float32 \[3, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused(
    which: Callable[..., Path], exchanged: dict[str, mx.array], message: str
):
    scores, ids, noise = case(3, 4)
    given = {"scores": scores, "ids": ids, "noise": noise} | exchanged
    with pytest.raises(ValueError, match=message):
        which(**given)


def test_the_kernel_refuses_what_it_has_no_room_for():
    with pytest.raises(ValueError, match="at most 16384"):
        candidate_path_metal(mx.zeros((129, 128, 128)), mx.zeros((129, 128), mx.int32))
    with pytest.raises(ValueError, match="threads is 16"):
        candidate_path_metal(*case(1, 1), threads=16)
