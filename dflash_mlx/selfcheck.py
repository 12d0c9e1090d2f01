"""Does decoding work here? A tiny pair with fixed random weights, decoded both ways.

The target is mlx-lm's llama with three layers, the draft a DFlash 1 with two. Eight tokens make up
the vocabulary, so that even a random draft is right now and then: rounds end at every place, and
caches are rolled back. Greedy tokens of both ways have to be the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from .config import DraftConfig
from .drafts import draft_for
from .generation import rounds
from .loading import Pair
from .options import Options
from .targets import target_for

TOKENS = 64
PROMPT = (1, 4, 2, 6, 5)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
}
DRAFT = SIZES | {
    "architectures": ["DFlashDraftModel"],
    "num_hidden_layers": 2,
    "dflash_config": {"block_size": 4, "mask_token_id": 7, "target_layer_ids": [0, 1]},
}


@dataclass(frozen=True)
class SelfCheck:
    """What both ways of decoding did.

    Attributes:
        same: how many tokens at the start are the same.
    """

    tokens: int
    same: int
    rounds: int
    drafted: int
    accepted: int

    @property
    def passed(self) -> bool:
        """Whether all are the same, and the draft had a part in it."""
        return self.same == self.tokens and 0 < self.accepted < self.drafted


def self_check() -> SelfCheck:
    """Decode with DFlash and plainly, and compare."""
    pair = _tiny_pair()
    found = list(rounds(pair, PROMPT, Options(max_tokens=TOKENS)))
    ours = [token for one in found for token in one.tokens]
    plain = rounds(pair, PROMPT, Options(max_tokens=TOKENS, speculate=False))
    truth = [token for one in plain for token in one.tokens]
    equal = [a == b for a, b in zip(ours, truth, strict=False)]
    return SelfCheck(
        tokens=len(truth),
        same=equal.index(False) if False in equal else len(equal),
        rounds=len(found) - 1,
        drafted=sum(one.drafted for one in found),
        accepted=sum(one.accepted for one in found),
    )


def _tiny_pair() -> Pair:
    from mlx_lm.models import llama

    arguments = llama.ModelArgs(
        model_type="llama", num_hidden_layers=3, tie_word_embeddings=False, **SIZES
    )
    config = DraftConfig.from_dict(DRAFT, "self check")
    model, draft = llama.Model(arguments), draft_for(config)
    _fill(model, 2)
    _fill(draft, 102)
    return Pair(
        target=target_for(model, config.taps),
        draft=draft.prepare(),
        tokenizer=None,
        eos_ids=frozenset(),
        max_context=256,
        name="self check",
        draft_name="self check",
    )


def _fill(module: Any, seed: int) -> None:
    """Matrices get normal noise that the process's own random state has no part in."""
    named = cast(list[tuple[str, mx.array]], tree_flatten(module.parameters()))
    keys = mx.random.split(mx.random.key(seed), len(named))
    fixed = [
        (name, mx.random.normal(value.shape, key=key) / 3 if value.ndim > 1 else value)
        for (name, value), key in zip(named, keys, strict=True)
    ]
    module.update(tree_unflatten(fixed))
