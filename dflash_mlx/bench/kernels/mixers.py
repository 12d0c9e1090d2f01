"""What mixes rows: attention to a cache, and the recurrence of gated delta layers."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from mlx_lm.models.gated_delta import gated_delta_kernel, gated_delta_ops

from ...kernels.gated_delta_round import Round, Rows
from .cases import (
    MAX_ROWS,
    Case,
    Inputs,
    Kind,
    Make,
    Sizes,
    Wait,
    bytes_of,
    normal,
    size,
    times,
)

STEP = 256  # slots that a cache grows by
Update = Callable[[mx.array, Rows, mx.array], tuple[mx.array, mx.array]]


def open_attention(sizes: Sizes, kind: Kind) -> Make:
    """heads, kv_heads, dim, context; ahead: 1 where a row sees the rows behind it, as in drafts."""
    heads, kv_heads, dim = (sizes[name] for name in ("heads", "kv_heads", "dim"))
    context, ahead = sizes["context"], bool(sizes["ahead"])
    slots = -(-(context + MAX_ROWS) // STEP) * STEP
    one = bytes_of(kv_heads, slots, dim, dtype=kind.dtype)
    caches = times(
        kind.sets(2 * one),
        lambda: tuple(normal(1, kv_heads, slots, dim, dtype=kind.dtype) for _ in range(2)),
    )
    start, scale = mx.array([context], mx.int32), dim**-0.5

    def case(rows: int) -> Case:
        def stock(q: mx.array, k: mx.array, v: mx.array, _: mx.array) -> mx.array:
            k, v = (kv[:, :, : context + rows] for kv in (k, v))
            mask = None if ahead or rows == 1 else "causal"
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

        sets = [(normal(1, heads, rows, dim, dtype=kind.dtype), k, v, start) for k, v in caches]
        seen = rows * context + (rows * rows if ahead else rows * (rows + 1) // 2)
        moved = 2 * size(sets[0][0]) + 2 * one // slots * (context + rows)
        options = {"scale": scale, "ahead": ahead}
        named = {"scaled_dot_product_attention": stock}
        return Case(sets, named, moved, 4 * heads * seen * dim, options)

    return case


def open_gated_delta(sizes: Sizes, kind: Kind) -> Make:
    """key_heads, heads, dim. A round replays half of the rows of the last one, at least one."""
    key_heads, heads, dim = (sizes[name] for name in ("key_heads", "heads", "dim"))
    one = bytes_of(heads, dim, dim, dtype=mx.float32)
    states = times(kind.sets(2 * one), lambda: normal(1, heads, dim, dim))

    def rows_of(count: int) -> tuple[mx.array, Rows]:
        """Queries and the rest, normalised and gated as a layer has them."""
        q, k = (normal(1, count, key_heads, dim) for _ in range(2))
        q, k = (x / mx.linalg.norm(x, axis=-1, keepdims=True) for x in (q * dim**-0.5, k))
        g = mx.random.uniform(0.5, 1, (1, count, heads))  # decays stay in float32
        beta = mx.random.uniform(0, 1, (1, count, heads)).astype(kind.dtype)
        v = normal(1, count, heads, dim, dtype=kind.dtype)
        return q.astype(kind.dtype), Rows(k.astype(kind.dtype), v, g, beta)

    def case(rows: int) -> Case:
        kept = max(1, rows // 2)
        count = mx.array([kept], mx.int32)

        def inputs(state: mx.array) -> Inputs:
            q, block = rows_of(rows)
            return state, rows_of(rows)[1], count, q, block

        sets = [inputs(state) for state in states]
        block = sets[0][4]
        moved = 2 * one + size(sets[0][1]) * kept // rows + size((sets[0][3], block, block.v))
        # Per element of the state: decay, S k, the outer product; S q for new rows.
        flops = heads * dim * dim * (5 * kept + 7 * rows)
        stock = {
            "mlx-lm's kernel": lambda *given: _twice(_mlx_lm, kept, given),
            "gated_delta_update": lambda *given: _twice(_mlx, kept, given),
        }
        return Case(sets, stock, moved, flops, {"with_behind": False}, tie=_tie)

    return case


def _tie(inputs: Inputs, wait: Wait) -> Inputs:
    """Both start with the old rows, or at least load them first."""
    state, old, *rest = inputs
    return state, old._replace(beta=wait(old.beta)), *rest


def _twice(update: Update, kept: int, inputs: Inputs) -> Round:
    """The replay of what was kept, then the block: two passes over the state, two launches."""
    state, old, _, q, block = inputs
    # A replay's own output is not used; its rows stand in for the queries.
    head = Rows(*(a[:, :kept] for a in old))
    _, state = update(head.k, head, state)
    y, _ = update(q, block, state)
    return Round(y, state, None)


def _mlx_lm(q: mx.array, rows: Rows, state: mx.array) -> tuple[mx.array, mx.array]:
    gpu = mx.default_device().type == mx.gpu
    update = gated_delta_kernel if gpu else gated_delta_ops
    y, state = update(q, *rows, state)
    return y, state


def _mlx(q: mx.array, rows: Rows, state: mx.array) -> tuple[mx.array, mx.array]:
    y, state = mx.fast.gated_delta_update(q, *rows, state)
    return y, state
