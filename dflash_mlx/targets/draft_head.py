"""The head as a draft sees it that proposes only some of the tokens.

The head is the larger part of a small draft's pass. A draft with a vocabulary of its own
(`DraftConfig.draft_vocab_size`) needs the head's rows of those tokens alone; what else the target
would say is never drafted, and verified as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..drafts.shortlist import largest
from ..kernels.choice import Kernels
from ..kernels.head import Head
from ..kernels.head_topk import TopK
from ..kernels.linear import stored

# Of tokens outside of the vocabulary: far below any logit, and finite, so that a row keeps a
# distribution where a guide allows no others.
NEVER = -1e4
ROWS = ("weight", "scales", "biases", "bias")


class DraftHead:
    """Some rows of a head.

    Args:
        head: the head, or the embedding that serves as one.
        ids: int32 [n], ascending: the tokens.
        kernels: what to run by.
    """

    def __init__(self, head: nn.Module, ids: mx.array, kernels: Kernels) -> None:
        self.ids = ids
        self._size = int(head["weight"].shape[0])
        linear = _rows_of(head, ids)
        mx.eval(linear.parameters())
        weight = stored(linear) if kernels.active else None
        self._head: Any = linear if weight is None else Head(linear, weight, kernels)

    def logits(self, hidden: mx.array, shape: Callable[[mx.array], mx.array]) -> mx.array:
        """Hidden states [B, L, hidden_size] to logits [B, L, vocab_size], as `shape` makes them."""
        own = shape(self._head(hidden))
        logits = mx.full((*own.shape[:-1], self._size), NEVER, own.dtype)
        logits[..., self.ids] = own
        return logits

    def best(self, hidden: mx.array, count: int) -> TopK | None:
        """As `Target.best`, among these tokens: where no kernel pays, too, as they are few."""
        count = min(count, len(self.ids))
        if isinstance(self._head, Head):
            found = self._head.best(hidden, count)
        else:
            found = _largest(self._head(hidden), count)
        return found and found._replace(ids=self.ids[found.ids])


def _largest(logits: mx.array, count: int) -> TopK:
    """As `head_topk_reference`, without sorting all of each row [n, vocab]."""
    logits = logits.astype(mx.float32)
    if count == 1:
        ids = mx.argmax(logits, -1, keepdims=True).astype(mx.int32)
    else:
        ids, values = largest(logits, count)
        ids = mx.take_along_axis(ids, mx.argsort(-values, -1), -1)
    return TopK(ids, mx.take_along_axis(logits, ids, -1), mx.logsumexp(logits, -1))


def _rows_of(head: nn.Module, ids: mx.array) -> nn.Module:
    """A linear layer of some rows, stored as the head is."""
    rows = {name: head[name][ids] for name in ROWS if name in head}
    if "scales" not in rows:
        size = rows["weight"].shape[1]
        linear: nn.Module = nn.Linear(size, len(ids), bias="bias" in rows)
    else:
        size = rows["weight"].shape[1] * 32 // head.bits
        kind = (head.group_size, head.bits, head.mode)
        linear = nn.QuantizedLinear(size, len(ids), "bias" in rows, *kind)
    return linear.update(rows)
