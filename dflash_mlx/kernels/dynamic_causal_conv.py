"""DFlash 2's convolutions around a sublayer, see `drafts/dflash2.py`.

In plain MLX each is about eight small operations over a few rows, which cost their launches. The
kernel takes the learnt part and the projected part of the coefficients as they are stored, adds
them on the fly, and adds the residual of the sublayer, so that each convolution is one launch.
"""

from __future__ import annotations

import mlx.core as mx

from .source import kernel

THREADS = (512, 256, 128, 64, 32, 1024)  # in the order to try them; 32 to each row
FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def dynamic_causal_conv_reference(
    rows: mx.array,
    base: mx.array,
    dynamic: mx.array,
    side: int,
    residual: mx.array | None = None,
) -> mx.array:
    """Convolve the rows of a block, in float32, rounded once.

    Row t becomes the sum over o of (base[side, o] + dynamic[t, side, o]) times row t - o, channel
    by channel, with zeros before row 0; the residual is added to it.

    Args:
        rows: [1, L, H], float32, float16 or bfloat16; the types of the others may differ.
        base: [2, reach, H], the learnt coefficients.
        dynamic: [L, 2 * reach * groups], those made from the sublayer's input: by side, place and
            group of H / groups neighbouring channels.
        side: 0 for the convolution before the sublayer, 1 for the one behind it.
        residual: [1, L, H].

    Returns:
        [1, L, H] in the type of `rows`.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    reach, groups = _check(rows, base, dynamic, side, residual)
    _, length, size = rows.shape
    made = dynamic.astype(mx.float32).reshape(length, 2, reach, groups)[:, side]
    weight = base[side].astype(mx.float32) + mx.repeat(made, size // groups, axis=-1)
    wide = rows.astype(mx.float32)
    total = mx.zeros_like(wide) if residual is None else residual.astype(mx.float32)
    for back in range(reach):
        earlier = mx.pad(wide, [(0, 0), (back, 0), (0, 0)])[:, :length]
        total = total + weight[:, back] * earlier
    return total.astype(rows.dtype)


def dynamic_causal_conv_metal(
    rows: mx.array,
    base: mx.array,
    dynamic: mx.array,
    side: int,
    residual: mx.array | None = None,
    threads: int = THREADS[0],
) -> mx.array:
    """The kernel; see the reference. `threads` is one of THREADS and changes no bit."""
    _check(rows, base, dynamic, side, residual)
    if threads not in THREADS:
        raise ValueError(f"threads is {threads}, expected one of {THREADS}")
    _, length, size = rows.shape
    y: mx.array
    (y,) = kernel("dynamic_causal_conv", ("rows", "base", "dynamic", "residual"), ("y",))(
        inputs=[rows, base, dynamic, rows if residual is None else residual],
        template=[("T", rows.dtype), ("Side", side), ("WithResidual", residual is not None)],
        grid=(size, length, 1),
        threadgroup=(32, threads // 32, 1),
        output_shapes=[rows.shape],
        output_dtypes=[rows.dtype],
    )
    return y


def _check(
    rows: mx.array, base: mx.array, dynamic: mx.array, side: int, residual: mx.array | None
) -> tuple[int, int]:
    """Rows that the convolution reaches, groups of channels."""
    if rows.ndim != 3 or rows.shape[0] != 1 or rows.size == 0 or rows.dtype not in FLOATS:
        raise ValueError(f"rows is {_seen(rows)}, expected a float type [1, L, H]")
    _, length, size = rows.shape
    if base.ndim != 3 or base.shape != (2, max(1, base.shape[1]), size) or base.dtype not in FLOATS:
        raise ValueError(f"base is {_seen(base)}, expected a float type [2, reach, {size}]")
    reach = base.shape[1]
    groups = dynamic.size // (length * 2 * reach)
    fits = dynamic.shape == (length, 2 * reach * groups) and groups > 0 and size % groups == 0
    if not fits or dynamic.dtype not in FLOATS:
        raise ValueError(
            f"dynamic is {_seen(dynamic)}, expected a float type [{length}, {2 * reach} * groups] "
            f"with groups that divide {size}"
        )
    if residual is not None and (residual.shape != rows.shape or residual.dtype not in FLOATS):
        raise ValueError(f"residual is {_seen(residual)}, expected a float type {list(rows.shape)}")
    if side not in (0, 1):
        raise ValueError(f"side is {side}, expected 0 (before the sublayer) or 1 (behind it)")
    return reach, groups


def _seen(array: mx.array) -> str:
    return f"{array.dtype} {list(array.shape)}"
