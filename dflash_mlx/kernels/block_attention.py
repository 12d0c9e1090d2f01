"""Attention of the rows of a block to a cache into which their keys and values are written already.

Serves verification (causal), the draft's block (every row sees the whole block), sliding windows
and attention sinks. Slots that no row sees are never read, so whatever they hold does not matter.

The context is split into chunks at fixed slots, and a second pass joins what was found in them. So
a row's bits do not depend on how many rows stand beside it or on how many slots there are. With a
sliding window that moves its base this holds as long as the base stays a multiple of CHUNK.
"""

from __future__ import annotations

import mlx.core as mx

from ..errors import UnsupportedError
from .source import kernel

HEAD_SIZES = (64, 128, 192, 256)
MOST_ROWS = 16
FLOATS = (mx.float32, mx.float16, mx.bfloat16)
# At most this many threads to a threadgroup, best first. Where they are too few for all rows of a
# KV head, two or more threadgroups share the rows, and each reads the keys and values.
THREADS = (1024, 768, 512, 384, 256, 128)
CHUNK, LEVEL = 256, 16  # as in metal/block_attention.metal


def block_attention_reference(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    start: mx.array,
    *,
    scale: float,
    window: int = 0,
    ahead: bool = False,
    sinks: mx.array | None = None,
) -> mx.array:
    """Softmax attention, computed in float32.

    Args:
        q: [1, H, R, D]; row r is the one whose key and value stand in slot `start` + r.
        k: [1, Hkv, slots, D], with H a multiple of Hkv.
        v: as k.
        start: int32 [1], with start + R at most `slots`. The context is the slots before it.
        scale: factor of the scores.
        window: how many slots a row sees to its left, itself included; 0 for all.
        ahead: whether a row also sees the rows of the block behind it.
        sinks: [H], one more score per head, with no value; any float type.

    Returns:
        [1, H, R, D] in the type of q.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    _check(q, k, v, start, window, sinks)
    _, heads, rows, dim = q.shape
    seen = _seen(start, rows, k.shape[2], window, ahead)  # [R, slots]
    # Not only masked: zero times NaN is NaN.
    values = mx.where(seen.any(axis=0)[:, None], v.astype(mx.float32), 0)
    grouped = q.astype(mx.float32).reshape(1, k.shape[1], -1, rows, dim)
    scores = grouped @ k.astype(mx.float32)[:, :, None].swapaxes(-1, -2) * scale
    scores = mx.where(seen, scores, -mx.inf).reshape(1, heads, rows, -1)
    if sinks is not None:
        column = mx.broadcast_to(sinks.astype(mx.float32)[:, None, None], (1, heads, rows, 1))
        scores = mx.concatenate([scores, column], axis=-1)
    shares = mx.softmax(scores, axis=-1)[..., : k.shape[2]]
    shares = shares.reshape(1, k.shape[1], -1, rows, k.shape[2])
    return (shares @ values[:, :, None]).reshape(q.shape).astype(q.dtype)


def _seen(start: mx.array, rows: int, slots: int, window: int, ahead: bool) -> mx.array:
    key, row = mx.arange(slots), (start + mx.arange(rows))[:, None]
    seen = mx.broadcast_to(key < start + rows, (rows, slots)) if ahead else key <= row
    return seen & (key > row - window) if window else seen


def block_attention_metal(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    start: mx.array,
    *,
    scale: float,
    window: int = 0,
    ahead: bool = False,
    sinks: mx.array | None = None,
    threads: int = THREADS[0],
) -> mx.array:
    """The kernel; see the reference. `threads` is one of THREADS and changes no bit.

    Raises:
        UnsupportedError: a head size or a number of rows that only the reference takes.
        ValueError: shapes or types do not fit together.
    """
    _check(q, k, v, start, window, sinks)
    _supported(q, k, v)
    if threads not in THREADS:
        raise ValueError(f"threads is {threads}, expected one of {THREADS}")
    partial, stats = _partial(q, k, v, start, scale, window, ahead, threads)
    return _merge(partial, stats, sinks, q.dtype)


def chunk_count(slots: int, rows: int, window: int) -> int:
    """How many chunks a cache of so many slots is split into; with a window those it can touch."""
    if window:
        touched = -(-(window + rows - 2) // CHUNK) + 1
        return min(touched, -(-slots // CHUNK))
    # 16 of 256 slots, 16 of 512, and so on.
    level = (slots // (LEVEL * CHUNK) + 1).bit_length() - 1
    rest = slots - LEVEL * CHUNK * ((1 << level) - 1)
    return LEVEL * level - (-rest // (CHUNK << level))


def _partial(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    start: mx.array,
    scale: float,
    window: int,
    ahead: bool,
    threads: int,
) -> tuple[mx.array, mx.array]:
    _, heads, rows, dim = q.shape
    _, kv_heads, slots, _ = k.shape
    tiles = -(-heads // kv_heads * rows // 8)
    used = min(threads, -(-tiles // 4) * 128)  # 4, 8, 12 ... simdgroups: fewer kernels to compile
    shape = (chunk_count(slots, rows, window), heads, rows)
    partial, stats = kernel("block_attention", INPUTS, ("partial", "stats"))(
        inputs=[q, k, v, start, scale],
        template=[
            ("T", q.dtype),
            ("D", dim),
            ("WINDOW", window),
            ("AHEAD", ahead),
            ("THREADS", used),
        ],
        grid=(-(-tiles * 32 // used) * used, shape[0], kv_heads),
        threadgroup=(used, 1, 1),
        output_shapes=[(*shape, dim), (*shape, 2)],
        output_dtypes=[mx.float32, mx.float32],
    )
    return partial, stats


def _merge(partial: mx.array, stats: mx.array, sinks: mx.array | None, dtype: mx.Dtype) -> mx.array:
    _, heads, rows, dim = partial.shape
    (y,) = kernel("block_attention_merge", ("partial", "stats", "sinks"), ("y",))(
        inputs=[partial, stats, mx.zeros(1) if sinks is None else sinks],
        template=[("T", dtype), ("SINKS", sinks is not None)],
        grid=(dim // 4, heads * rows, 1),
        threadgroup=(dim // 4, 512 // dim, 1),  # 128 threads, 96 for a head size of 192
        output_shapes=[(1, heads, rows, dim)],
        output_dtypes=[dtype],
    )
    merged: mx.array = y
    return merged


INPUTS = ("q", "k", "v", "start", "scale")


def _supported(q: mx.array, k: mx.array, v: mx.array) -> None:
    rows, dim = q.shape[2:]
    if dim not in HEAD_SIZES:
        raise UnsupportedError(
            f"head size {dim}: the attention kernel has {HEAD_SIZES}; use the reference"
        )
    if rows > MOST_ROWS:
        raise UnsupportedError(
            f"{rows} rows: the attention kernel takes {MOST_ROWS} at most; use the reference"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise UnsupportedError(
            f"queries of {q.dtype}, keys of {k.dtype} and values of {v.dtype}: "
            "the attention kernel takes one type; use the reference"
        )


def _check(
    q: mx.array, k: mx.array, v: mx.array, start: mx.array, window: int, sinks: mx.array | None
) -> None:
    if any(a.ndim != 4 or a.shape[0] != 1 or a.dtype not in FLOATS for a in (q, k, v)):
        given = ", ".join(f"{name} {_told(a)}" for name, a in zip("qkv", (q, k, v), strict=True))
        raise ValueError(f"{given}: expected a float type [1, heads, rows, head size]")
    heads, rows, dim = q.shape[1:]
    if k.shape != v.shape or k.shape[3] != dim or heads % k.shape[1] or rows > k.shape[2]:
        raise ValueError(
            f"q {_told(q)}, k {_told(k)}, v {_told(v)}: expected k and v of one shape, the head "
            "size of q, heads that divide those of q, and a slot for every row"
        )
    if start.shape != (1,) or start.dtype != mx.int32:
        raise ValueError(f"start is {_told(start)}, expected int32 [1]")
    if window < 0:
        raise ValueError(f"window is {window}, expected a number of slots, or 0 for no limit")
    if sinks is not None and (sinks.shape != (heads,) or sinks.dtype not in FLOATS):
        raise ValueError(f"sinks is {_told(sinks)}, expected a float type [{heads}]")


def _told(array: mx.array) -> str:
    return f"{array.dtype} {list(array.shape)}"
