"""A few rows times an affine-quantised weight: what verification spends its time on.

The kernel reads the weight once for up to 16 rows. MLX's own does so for 5 rows at most, or only
for one on M1 and M2, or else pads to 32 rows. A row's result depends neither on the other rows nor
on their number, so verification agrees bit for bit with decoding by the same kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .source import kernel

MAX_ROWS = 16
BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
THREADS = (256, 128, 64, 32)  # from the best to what every chip can launch
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
# This many threadgroups should be there before they are made larger: chips have 8 to 80 cores.
ENOUGH_GROUPS = 128
INPUTS = ("x", "w", "scales", "biases", "up_w", "up_scales", "up_biases", "indices")


class PackedWeight(NamedTuple):
    """A weight [N, K], or one per expert [E, N, K], as `mx.quantize` packs it.

    w: uint32 [..., N, K * bits / 32].  scales, biases: floats [..., N, K / group_size].
    """

    w: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        """N and K of the weight it stands for."""
        return self.w.shape[-2], self.w.shape[-1] * 32 // self.bits

    def first(self, count: int) -> PackedWeight:
        """The first so many rows, or experts."""
        return self._replace(
            w=self.w[:count], scales=self.scales[:count], biases=self.biases[:count]
        )

    def dequantised(self) -> mx.array:
        """The weight in float32."""
        scales, biases = self.scales.astype(mx.float32), self.biases.astype(mx.float32)
        return mx.dequantize(self.w, scales, biases, self.group_size, self.bits)


def quantized_matmul_small_reference(
    x: mx.array, weight: PackedWeight, up: PackedWeight | None = None
) -> mx.array:
    """x [M, K] times weight^T, or silu(x weight^T) * (x up^T): [M, N], of x's dtype.

    All of it is computed in float32 and rounded once, at the end. MLX's `quantized_matmul` is not
    used: on a CPU it adds up in x's dtype and errs by up to 28 %.
    """
    exact = x.astype(mx.float32)
    y = exact @ weight.dequantised().T
    if up is not None:
        y = y * mx.sigmoid(y) * (exact @ up.dequantised().T)
    return y.astype(x.dtype)


def quantized_matmul_small_metal(
    x: mx.array,
    weight: PackedWeight,
    up: PackedWeight | None = None,
    *,
    threads: int = THREADS[0],
    rows: int | None = None,
) -> mx.array:
    """As the reference, by `metal/quantized_matmul_small.metal`.

    Args:
        x: [M, K], M from 1 to 16.
        weight: [N, K], packed.
        up: a second weight, packed in the same way; then `weight` is the gate of a SwiGLU.
        threads: per threadgroup, one of THREADS. The order of additions follows from it.
        rows: of the weights (both together) per threadgroup, 8, 16 or 32; chosen by N if None.
            Changes no result.

    Raises:
        ValueError: shapes, dtypes or options that the kernel does not take.
    """
    if x.ndim != 2 or not 1 <= x.shape[0] <= MAX_ROWS:
        raise ValueError(f"x is {x.shape}, expected 1 to {MAX_ROWS} rows [M, K]")
    check(x, weight, up, 2, threads)
    m = x.shape[0]
    return launch(x, weight, up, None, (m, weight.shape[0]), threads, rows, tiles=-(-m // 8))


def launch(
    x: mx.array,
    weight: PackedWeight,
    up: PackedWeight | None,
    indices: mx.array | None,
    shape: tuple[int, int],
    threads: int,
    rows: int | None,
    tiles: int,
) -> mx.array:
    """The kernel on checked arguments: y has this shape, made of `tiles` tiles of 8 rows of x.

    With `indices` it gathers (see the `.metal` file).
    """
    each = tile_rows(shape[1], rows, fused=up is not None)
    template = [
        ("T", x.dtype),
        ("BITS", weight.bits),
        ("GROUP", weight.group_size),
        ("ROWS", each),
        ("TILES_M", tiles),
        ("SIMDS", threads // 32),
        ("SWIGLU", int(up is not None)),
        ("GATHER", int(indices is not None)),
    ]
    chosen = weight.w if indices is None else indices
    (y,) = kernel("quantized_matmul_small", INPUTS, ("y",))(
        inputs=[x, *weight[:3], *(up or weight)[:3], chosen],
        output_shapes=[shape],
        output_dtypes=[x.dtype],
        grid=(threads * -(-shape[1] // each), 1 if indices is None else shape[0], 1),
        threadgroup=(threads, 1, 1),
        template=template,
    )
    result: mx.array = y
    return result


def tile_rows(n: int, rows: int | None, fused: bool) -> int:
    """Rows of each weight per threadgroup: many share the reading of x, few fill more cores."""
    least = 16 if fused else 8
    if rows is None:
        rows = next((r for r in (32, 16) if n >= r // (1 + fused) * ENOUGH_GROUPS), least)
    if rows not in (32, 16, 8) or rows < least:
        raise ValueError(f"rows={rows}, expected 8 (for one weight), 16 or 32")
    return rows // (1 + fused)


def check(
    x: mx.array, weight: PackedWeight, up: PackedWeight | None, ndim: int, threads: int
) -> None:
    """Refuses what the kernel does not take, with a ValueError; `ndim` is that of the weights."""
    if threads not in THREADS:
        raise ValueError(f"threads={threads}, expected one of {THREADS}")
    if x.dtype not in DTYPES:
        raise ValueError(f"x is {x.dtype}, expected one of {DTYPES}")
    for name, packed in (("weight", weight), ("up", up)):
        if packed is not None:
            _check_packed(name, packed, x.shape[-1], ndim)
    if up is not None and (up.w.shape, *up[3:]) != (weight.w.shape, *weight[3:]):
        raise ValueError(
            f"up.w is {up.w.shape} in {up.bits} bits by {up.group_size}, expected the same as "
            f"weight: {weight.w.shape} in {weight.bits} bits by {weight.group_size}"
        )


def _check_packed(name: str, packed: PackedWeight, k: int, ndim: int) -> None:
    w, scales, biases, group, bits = packed
    if bits not in BITS or group not in GROUP_SIZES:
        raise ValueError(
            f"{name} has {bits} bits by {group}, expected one of {BITS} by one of {GROUP_SIZES}"
        )
    fits = w.dtype == mx.uint32 and w.ndim == ndim and w.size > 0
    if not fits or w.shape[-1] * 32 != k * bits or k % group:
        raise ValueError(
            f"{name}.w is {w.dtype} {w.shape}, expected uint32 of {ndim} dimensions, the last "
            f"{k} * {bits} / 32, with {k} a multiple of the group size {group}"
        )
    wanted = (*w.shape[:-1], k // group)
    for part, values in (("scales", scales), ("biases", biases)):
        if values.shape != wanted or values.dtype not in DTYPES or values.dtype != scales.dtype:
            raise ValueError(
                f"{name}.{part} is {values.dtype} {values.shape}, expected {wanted}, "
                f"scales and biases alike of one of {DTYPES}"
            )
