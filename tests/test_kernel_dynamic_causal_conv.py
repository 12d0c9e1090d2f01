"""DFlash 2's convolution: against its reference and the draft's own, bit by bit, what it moves."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from dflash_mlx.config import DFlash2
from dflash_mlx.drafts.dflash2 import GroupedDynamicCausalConv
from dflash_mlx.kernels.dynamic_causal_conv import (
    THREADS,
    dynamic_causal_conv_metal,
    dynamic_causal_conv_reference,
)
from tests.metal_cpu import MetalKernel, Options, coverage
from tests.metal_cpu.fixture import MATRIX

Emulate = Callable[[Options], list[MetalKernel]]

# rows, channels, reach, channels to a group
SHAPES = [(16, 64, 2, 16), (1, 48, 2, 16), (5, 33, 3, 11), (2, 7, 4, 7), (17, 40, 1, 1)]
LIMITS = {mx.float32: 1e-6, mx.float16: 1e-3, mx.bfloat16: 8e-3}


def case(shape: tuple[int, ...], dtype: mx.Dtype = mx.float32) -> dict[str, mx.array]:
    rows, size, reach, group = shape
    mx.random.seed(sum(shape))
    sizes = {
        "rows": (1, rows, size),
        "base": (2, reach, size),
        "dynamic": (rows, 2 * reach * size // group),
        "residual": (1, rows, size),
    }
    return {name: mx.random.normal(s).astype(dtype) for name, s in sizes.items()}


def wide(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    return {name: a.astype(mx.float32) for name, a in arrays.items()}


def first(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    """Without the residual."""
    return {name: a for name, a in arrays.items() if name != "residual"}


def error(found: mx.array, wanted: mx.array) -> float:
    """Largest difference, relative to the largest value."""
    assert found.shape == wanted.shape
    return float(mx.abs(found.astype(mx.float32) - wanted).max() / mx.abs(wanted).max())


def bits(x: mx.array) -> bytes:
    return np.array(x.astype(mx.float32)).tobytes()


@pytest.mark.parametrize("side", [0, 1])
def test_the_reference_is_the_sum_by_hand(side: int):
    arrays = case((5, 12, 3, 4))
    rows, base, dynamic, wanted = (np.array(a, np.float64) for a in arrays.values())
    for t in range(5):
        for c in range(12):
            for o in range(min(t + 1, 3)):
                made = dynamic[t].reshape(2, 3, 3)[side, o, c // 4]
                wanted[0, t, c] += (base[side, o, c] + made) * rows[0, t - o, c]
    found = dynamic_causal_conv_reference(**arrays, side=side)
    assert error(found, mx.array(wanted.astype(np.float32))) < 1e-6


def test_the_draft_convolves_before_and_behind_a_sublayer():
    extra = DFlash2(conv_kernel_size=3, conv_group_size=8, selector_rank=1, selector_top_k=1)
    conv = GroupedDynamicCausalConv(48, extra)
    conv.base_kernel = mx.random.normal(conv.base_kernel.shape)
    x = mx.random.normal((1, 9, 48))
    dynamic = conv.kernel_projection(x[0])
    inner = dynamic_causal_conv_reference(x, conv.base_kernel, dynamic, 0)
    found = dynamic_causal_conv_reference(mx.sin(inner), conv.base_kernel, dynamic, 1, x)
    assert error(conv(x, mx.sin, x), found) < 1e-6


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_and_reference_agree(shape: tuple[int, ...], dtype: mx.Dtype, emulate: Emulate):
    emulate(Options(order="random"))
    arrays = case(shape, dtype)
    for side, given in ((0, first(arrays)), (1, arrays)):
        found = dynamic_causal_conv_metal(**given, side=side)
        wanted = dynamic_causal_conv_reference(**wide(given), side=side)
        assert found.dtype == dtype
        assert error(found, wanted) < LIMITS[dtype]


def test_types_may_differ(emulate: Emulate):
    emulate(Options())
    arrays = case((4, 32, 2, 8))
    arrays |= {
        "rows": arrays["rows"].astype(mx.bfloat16),
        "base": arrays["base"].astype(mx.float16),
    }
    found = dynamic_causal_conv_metal(**arrays, side=1)
    assert found.dtype == dynamic_causal_conv_reference(**arrays, side=1).dtype == mx.bfloat16
    wanted = dynamic_causal_conv_reference(**wide(arrays), side=1)
    assert error(found, wanted) < LIMITS[mx.bfloat16]


@pytest.mark.parametrize("how", MATRIX)
def test_every_order_and_the_checked_build(how: str, emulate: Emulate):
    emulate(MATRIX[how])
    arrays = case((5, 36, 3, 12))
    for side, given in ((0, arrays), (1, first(arrays))):
        found = dynamic_causal_conv_metal(**given, side=side, threads=64)
        assert error(found, dynamic_causal_conv_reference(**given, side=side)) < 1e-6


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("how", ["asc", "unfused"])
def test_a_row_has_the_bits_it_has_among_sixteen(how: str, dtype: mx.Dtype, emulate: Emulate):
    """A row sees itself and the reach - 1 rows before it, whatever else is in the block."""
    emulate(MATRIX[how])
    arrays = case((16, 40, 2, 8), dtype)
    whole = dynamic_causal_conv_metal(**arrays, side=1)
    for i in range(16):
        seen = slice(max(0, i - 1), i + 1)
        near = {name: arrays[name][:, seen] for name in ("rows", "residual")}
        near |= {"base": arrays["base"], "dynamic": arrays["dynamic"][seen]}
        assert bits(dynamic_causal_conv_metal(**near, side=1)[:, -1]) == bits(whole[:, i])


def test_a_multiply_add_rounds_once(emulate: Emulate):
    """What is left of a product and its rounded value."""
    emulate(MATRIX["unfused"])
    rows = mx.full((1, 1, 8), 1 + 2.0**-12)
    residual = mx.full((1, 1, 8), -(1 + 2.0**-11))
    base, nothing = mx.broadcast_to(rows, (2, 1, 8)), mx.zeros((1, 2))
    found = dynamic_causal_conv_metal(rows, base, nothing, 1, residual)
    assert bool(mx.all(found == 2.0**-24))


@pytest.mark.parametrize("threads", THREADS)
def test_the_size_of_threadgroups_changes_no_bit(threads: int, emulate: Emulate):
    kernels = emulate(Options())
    arrays = case((16, 70, 2, 10))
    wanted = dynamic_causal_conv_metal(**arrays, side=1)
    assert bits(dynamic_causal_conv_metal(**arrays, side=1, threads=threads)) == bits(wanted)
    assert kernels[-1].report.groups == 3 * max(1, 16 * 32 // threads)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8, 12, 16])
def test_each_line_of_the_block_is_read_once(rows: int, emulate: Emulate):
    kernels = emulate(Options(traffic=True))
    arrays = case((rows, 128, 2, 16), mx.bfloat16)
    dynamic_causal_conv_metal(**arrays, side=1)
    moved = kernels[-1].report.buffers
    assert moved["rows"].passes == moved["residual"].passes == 1
    assert moved["base"].passes <= 0.5  # one side of two
    assert moved["y"].write.lane_bytes == moved["y"].size


def test_every_line_runs(emulate: Emulate):
    kernels = emulate(Options(coverage=True))
    dynamic_causal_conv_metal(**case((3, 8, 2, 4)), side=0)
    coverage.check([r for k in kernels for r in k.reports], "dynamic_causal_conv")


@pytest.mark.parametrize("which", [dynamic_causal_conv_metal, dynamic_causal_conv_reference])
@pytest.mark.parametrize(
    ("exchanged", "message"),
    [
        ({"rows": mx.zeros((2, 4, 12))}, r"rows is .*\[1, L, H\]"),
        ({"rows": mx.zeros((1, 4, 12), mx.int32)}, "rows is .*int32.*float type"),
        ({"base": mx.zeros((2, 2, 11))}, r"base is .*\[2, reach, 12\]"),
        ({"base": mx.zeros((2, 0, 12))}, r"base is .*\[2, reach, 12\]"),
        ({"dynamic": mx.zeros((4, 20))}, r"dynamic is .*divide 12"),
        ({"dynamic": mx.zeros((4, 9))}, r"dynamic is .*4 \* groups"),
        ({"dynamic": mx.zeros((3, 12))}, r"dynamic is .*\[4, 4 \* groups\]"),
        ({"residual": mx.zeros((1, 1, 12))}, r"residual is .*\[1, 4, 12\]"),
        ({"side": 2}, "side is 2"),
    ],
)
def test_what_does_not_fit_is_refused(
    which: Callable[..., mx.array], exchanged: dict[str, object], message: str
):
    with pytest.raises(ValueError, match=message):
        which(**case((4, 12, 2, 4)) | {"side": 0} | exchanged)


def test_threads_are_those_of_the_ladder():
    with pytest.raises(ValueError, match="threads is 96"):
        dynamic_causal_conv_metal(**case((4, 12, 2, 4)), side=0, threads=96)
