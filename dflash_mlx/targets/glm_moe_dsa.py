"""GLM-5 and DeepSeek-V3.2: latent attention to the rows that an indexer picks.

Once a layer sees more than `index_topk` keys, its indexer scores them all and attention reads the
best ones only. The indexer keeps keys of its own, so a layer has two streams in the cache, which
roll back alike. In a fixed pass the layer counts slots where it should count rows; that is right
all the same, because a masked slot scores minus infinity, is picked after every visible one, and
stays masked when picked.

Neither which rows are picked nor the order they are read in may hang on the width of a pass. For
several tokens mlx-lm adds up the indexer's heads in another order than for one, and then masks
all keys instead of reading the picked ones. So the rows of a narrow pass enter mlx-lm's attention
as a batch of single tokens, each at a position of its own, which is also how mlx-lm decodes
several texts at once. What a partition returns is in no order, so it is sorted: visible rows by
position, masked ones behind them, whatever the number of slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..batched import Starts, States, collect, masks, views
from ..kv import LayerView, Windows
from .base import Pass
from .mla import ABSORBED, MlaTarget
from .twin import twin


@dataclass
class SparsePass(Pass):
    """`streams` are the caches behind `views`, in the order of the state."""

    streams: list[LayerView]


class BatchView:
    """One stream of a layer's cache, in a pass whose rows are a batch of single tokens.

    Attributes:
        offset: int32 [L], the position of each row.
    """

    def __init__(self, stream: LayerView, rows: int) -> None:
        self._stream = stream
        self.offset = stream.offset + mx.arange(rows, dtype=mx.int32)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write [L, 1, 1, dim]; return [L, 1, keys, dim], one copy that all rows look at."""
        seen = self._stream.update_and_fetch(keys.swapaxes(0, 2), values.swapaxes(0, 2))
        rows = keys.shape[0]
        return (
            mx.broadcast_to(seen[0], (rows, *seen[0].shape[1:])),
            mx.broadcast_to(seen[1], (rows, *seen[1].shape[1:])),
        )


class RowByRow:
    """Stands for an attention module and hands it the rows of [1, L, D] as a batch."""

    def __init__(self, attention: Any) -> None:
        self._attention = attention

    def __call__(self, x: mx.array, mask: mx.array, cache: Any) -> mx.array:
        batch = x.reshape(x.shape[1], 1, x.shape[2])
        # [L, keys] -> [L, heads, 1, keys]
        out: mx.array = self._attention(batch, mask=mask[:, None, None], cache=cache)
        return out.reshape(x.shape)


class PerHead:
    """Stands for a projection with a matrix per head, of one row [L, heads, 1, dim] each.

    The rows are gathered again for it: one product per head reads the weights once.
    """

    def __init__(self, projection: Any) -> None:
        self._projection = projection

    def __call__(self, x: mx.array) -> mx.array:
        out: mx.array = self._projection(x.swapaxes(0, 2))  # [1, heads, L, dim]
        return out.swapaxes(0, 2)


class Stream:
    """One of a layer's streams, with those fields of mlx-lm's cache that sparse attention uses."""

    def __init__(self, stream: LayerView, rows: int) -> None:
        self._stream = stream
        self._view = BatchView(stream, rows) if rows <= ABSORBED else stream
        self.offset = self._view.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the pass's rows; return what queries may attend to."""
        return self._view.update_and_fetch(keys, values)

    @property
    def keys(self) -> mx.array:
        """[1, 1, slots, dim]; mlx-lm ties the evaluation of the indexer's rows to it."""
        assert self._stream.rows is not None
        return self._stream.rows[0]

    @keys.setter
    def keys(self, keys: mx.array) -> None:
        self._stream.rows = [keys, self.values]

    @property
    def values(self) -> mx.array:
        """[1, 1, slots, dim]."""
        assert self._stream.rows is not None
        return self._stream.rows[1]


class IndexStream(Stream):
    """The indexer's keys. It has no values; a column of zeros stands for them."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the pass's keys; return those that queries may score."""
        return super().update_and_fetch(keys, mx.zeros_like(values[..., :1]))

    @property
    def values(self) -> mx.array:
        """[1, 1, slots, 1]."""
        return super().values

    @values.setter
    def values(self, values: mx.array) -> None:
        """mlx-lm drops here what it wrote as values; nothing was."""


class Sorted:
    """Stands for an indexer and puts what it picked in the order of positions."""

    def __init__(self, indexer: Any) -> None:
        self._indexer = indexer

    def __call__(self, x: mx.array, qr: mx.array, mask: mx.array, cache: Any) -> mx.array | None:
        picked = self._indexer(x, qr, mask, cache=cache)
        return None if picked is None else mx.sort(picked, axis=-1)


class GlmMoeDsaTarget(MlaTarget):
    """`model_type: glm_moe_dsa` and `deepseek_v32`."""

    batches = False  # the rows of a pass take the place of a batch in mlx-lm's module

    def layer_windows(self) -> Windows:
        """Two streams per layer, both full: latents, and keys of the indexer."""
        return (None,) * (2 * len(self.layers))

    def narrow(self, attention: Any) -> Any:
        """What stands for an attention module in passes of up to `ABSORBED` rows."""
        parts: dict[str, Any] = {
            name: PerHead(attention.get(name)) for name in ("embed_q", "unembed_out")
        }
        return RowByRow(twin(attention, **parts, indexer=Sorted(attention.get("indexer"))))

    def open(self, ids: mx.array, start: Starts, state: States) -> SparsePass:
        """What the layers of a pass over `ids` from position `start` on are called with."""
        rows = ids.shape[1]
        streams = views(self.windows, state, start)
        mask = masks(self.windows, state, start, rows, shorthand=False)[0]
        shared = [
            [Stream(latent, rows), IndexStream(index, rows)]
            for latent, index in zip(streams[::2], streams[1::2], strict=True)
        ]
        return SparsePass(shared, [mask] * len(shared), streams)

    def close(self, state: States, now: Pass) -> Any:
        """The state after the pass."""
        assert isinstance(now, SparsePass)
        return collect(state, now.streams)
