"""The recurrence of gated delta layers over one round: what was kept is replayed, a block follows.

A rejected row cannot be taken out of a recurrent state (see `recurrent.py`), so the state of a
round is made again from the one before it. Both the replay and the new block need every element
of the state, so they share one pass: it is read once, and written once as the committed state.
The state behind the block is a second writing, for callers that may keep every row and then go on
without a replay.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .source import kernel

THREADS = (128, 64, 32, 256)  # to a threadgroup, in the order to try them
FLOATS = (mx.float32, mx.float16, mx.bfloat16)


class Rows(NamedTuple):
    """What the recurrence takes of each row, after convolution, normalisation and gating.

    Any of float32, float16 and bfloat16, each array on its own; Hv is a multiple of Hk.

    Attributes:
        k: [B, rows, Hk, Dk].
        v: [B, rows, Hv, Dv].
        g: decay, [B, rows, Hv].
        beta: [B, rows, Hv].
    """

    k: mx.array
    v: mx.array
    g: mx.array
    beta: mx.array


class Round(NamedTuple):
    """Outputs of a round.

    Attributes:
        y: [B, T, Hv, Dv] of the block, in the type of its queries.
        committed: the state behind the kept rows, float32 [B, Hv, Dv, Dk].
        behind: the state behind the whole block, float32; None if not asked for.
    """

    y: mx.array
    committed: mx.array
    behind: mx.array | None


def gated_delta_round_reference(
    state: mx.array,
    old: Rows,
    kept: mx.array,
    q: mx.array,
    block: Rows,
    with_behind: bool = True,
) -> Round:
    """Replay the first `kept` of the old rows, then go through the block.

    Per value head a row turns S [Dv, Dk] into g S + (v - g S k) beta k^T and gives y = S q.

    Args:
        state: before the old rows, float32 [B, Hv, Dv, Dk].
        old: rows of the last round. Where there was none, any rows with `kept` 0.
        kept: int32 [1]; a number beyond the old rows means all of them.
        q: [B, T, Hk, Dk], scaled.
        block: T new rows.
        with_behind: whether to return the state behind the block.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    _check(state, old, kept, q, block)
    for t in range(old.k.shape[1]):
        state = mx.where(t < kept, _advance(state, old, t), state)
    committed, rows = state, []
    for t in range(block.k.shape[1]):
        state = _advance(state, block, t)
        rows.append((state * _per_head(q[:, t], state)[:, :, None]).sum(-1))
    return Round(mx.stack(rows, 1).astype(q.dtype), committed, state if with_behind else None)


def _advance(state: mx.array, rows: Rows, t: int) -> mx.array:
    k, v, g, beta = (a[:, t].astype(mx.float32) for a in rows)
    k = _per_head(k, state)[:, :, None]
    state = state * g[..., None, None]
    delta = (v - (state * k).sum(-1)) * beta[..., None]
    return state + k * delta[..., None]


def _per_head(x: mx.array, state: mx.array) -> mx.array:
    """[B, Hk, Dk] -> float32 [B, Hv, Dk]."""
    return mx.repeat(x.astype(mx.float32), state.shape[1] // x.shape[1], axis=1)


def gated_delta_round_metal(
    state: mx.array,
    old: Rows,
    kept: mx.array,
    q: mx.array,
    block: Rows,
    with_behind: bool = True,
    threads: int = THREADS[0],
) -> Round:
    """The kernel; see the reference. `threads` is one of THREADS and changes no bit.

    Each row's bits are the same whether it was replayed, verified in a block or decoded alone.
    """
    _check(state, old, kept, q, block)
    if threads not in THREADS:
        raise ValueError(f"threads is {threads}, expected one of {THREADS}")
    batch, heads, dv, dk = state.shape
    y, committed, behind = kernel("gated_delta_round", INPUTS, OUTPUTS)(
        inputs=[state, kept, *old, q, *block],
        template=[("T", q.dtype), ("Dk", dk), ("WithBehind", with_behind)],
        grid=(4 * dv, batch * heads, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[block.v.shape, state.shape, state.shape if with_behind else (1,)],
        output_dtypes=[q.dtype, mx.float32, mx.float32],
    )
    return Round(y, committed, behind if with_behind else None)


OLD, NEW = (tuple(f"{name}_{which}" for name in Rows._fields) for which in ("old", "new"))
INPUTS = ("state", "kept", *OLD, "q", *NEW)
OUTPUTS = ("y", "committed", "behind")


def _check(state: mx.array, old: Rows, kept: mx.array, q: mx.array, block: Rows) -> None:
    if state.ndim != 4 or state.dtype != mx.float32 or state.size < 8:
        raise ValueError(
            f"state is {_seen(state)}, expected float32 [B, Hv, Dv, Dk] with 8 elements or more"
        )
    if kept.shape != (1,) or kept.dtype != mx.int32:
        raise ValueError(f"kept is {_seen(kept)}, expected int32 [1]")
    batch, heads, dv, dk = state.shape
    if q.ndim != 4 or q.size == 0 or heads % q.shape[2]:
        raise ValueError(f"q is {_seen(q)}, expected [B, T, Hk, Dk] with Hk that divides {heads}")
    for which, rows in (("old", old), ("block", block)):
        count = q.shape[1] if rows is block else max(1, rows.k.shape[1])
        _expect(f"{which}.k", rows.k, (batch, count, q.shape[2], dk))
        _expect(f"{which}.v", rows.v, (batch, count, heads, dv))
        _expect(f"{which}.g", rows.g, (batch, count, heads))
        _expect(f"{which}.beta", rows.beta, (batch, count, heads))
    _expect("q", q, block.k.shape)


def _expect(name: str, array: mx.array, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype not in FLOATS:
        raise ValueError(f"{name} is {_seen(array)}, expected a float type {list(shape)}")


def _seen(array: mx.array) -> str:
    return f"{array.dtype} {list(array.shape)}"
