"""Multi-head latent attention: DeepSeek-V3, Kimi-K2 and GLM-4.7-Flash.

The cache holds per token one latent, [1, 1, slots, kv_lora_rank], and one rotary key,
[1, 1, slots, qk_rope_head_dim], and rolls back by length as plain attention does. There are two
ways to attend to them. mlx-lm *absorbs* the key projection into the query of a single token, so
that all heads attend to the latents as they are; for several tokens it *expands* every latent of
the context to keys and values of all heads. In a verification that is the whole context in every
round, and it rounds differently from decoding, so that another token may win.

Narrow passes absorb here at every width. Absorbed attention is attention of many query heads to
one head of keys, the latents, so mlx-lm's own code computes it when its parts are shifted: what
projects queries goes on into the space of latents, what projects outputs comes back from there,
and nothing is left to do for what expands in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ..batched import Starts, States, masks, views
from ..kernels.choice import OFF, Kernels
from ..ranks import ALONE, Ranks
from .base import Pass, Target
from .twin import twin

# With r the latent's size, n and v those of a head's key (without its rotary part) and value, a
# query costs 2r per head and key absorbed and n + v expanded, and expanding costs r(n + v) per
# head and key once. Absorbing wins below r(n + v) / (2r - n - v) rows: 170 for Kimi-K2, 398 for
# GLM-4.7-Flash and GLM-5. This is below both, and above every block.
ABSORBED = 128


class AbsorbedQuery:
    """Stands for the last projection of the queries, and takes them on to the latents."""

    def __init__(self, attention: Any, project: Any) -> None:
        self._attention = attention
        self._project = project

    def __call__(self, x: mx.array) -> mx.array:
        """[1, L, in] to [1, L, heads * (kv_lora_rank + qk_rope_head_dim)]."""
        its = self._attention
        heads = _by_head(self._project(x), its.num_heads)
        plain, rotary = mx.split(heads, [its.qk_nope_head_dim], axis=-1)
        return _flat(mx.concatenate([its.embed_q(plain), rotary], axis=-1))


class AbsorbedOutput:
    """Stands for the output projection, and first takes each head back from the latents."""

    def __init__(self, attention: Any) -> None:
        self._attention = attention

    def __call__(self, x: mx.array) -> mx.array:
        """[1, L, heads * kv_lora_rank] to [1, L, hidden_size]."""
        its = self._attention
        out: mx.array = its.o_proj(_flat(its.unembed_out(_by_head(x, its.num_heads))))
        return out


class Nothing:
    """Stands for a projection whose work is done elsewhere."""

    def __call__(self, x: mx.array, transpose: bool = True) -> mx.array:
        return x


def absorbed(attention: Any) -> Any:
    """A twin of an attention module that attends to the latents whatever the width."""
    query = "q_proj" if attention.q_lora_rank is None else "q_b_proj"
    return twin(
        attention,
        **{query: AbsorbedQuery(attention, getattr(attention, query))},
        embed_q=Nothing(),
        unembed_out=Nothing(),
        o_proj=AbsorbedOutput(attention),
        qk_nope_head_dim=attention.kv_lora_rank,
        q_head_dim=attention.kv_lora_rank + attention.qk_rope_head_dim,
    )


class MlaTarget(Target):
    """`model_type: deepseek_v3`, `kimi_k2` and `glm4_moe_lite`."""

    softmax = None

    def __init__(
        self,
        model: Any,
        taps: Sequence[int] = (),
        kernels: Kernels = OFF,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(model, taps, kernels, ranks)
        self._narrow = [
            twin(layer, self_attn=self.narrow(layer.self_attn)) for layer in self.layers
        ]

    @property
    def unquantised(self) -> str:
        """Latents."""
        return "its cache holds latents, which go through products of their own"

    def narrow(self, attention: Any) -> Any:
        """What stands for an attention module in passes of up to `ABSORBED` rows."""
        return absorbed(attention)

    def open(self, ids: mx.array, start: Starts, state: States) -> Pass:
        """What the layers of a pass over `ids` from position `start` on are called with."""
        # All layers are alike.
        mask = masks(self.windows, state, start, ids.shape[1], shorthand=False)[0]
        return Pass(views(self.windows, state, start), [mask] * len(self.layers))

    def run(self, index: int, hidden: mx.array, now: Pass) -> mx.array:
        """One layer: the residual stream [1, L, hidden_size] before it to that behind it."""
        layers = self._narrow if hidden.shape[1] <= ABSORBED else self.layers
        behind: mx.array = layers[index](hidden, mask=now.masks[index], cache=now.views[index])
        return behind


def _by_head(x: mx.array, heads: int) -> mx.array:
    # [1, L, heads * dim] -> [1, heads, L, dim]
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _flat(x: mx.array) -> mx.array:
    return x.transpose(0, 2, 1, 3).flatten(2)
