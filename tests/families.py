"""Small random-weight models of the real architectures, and drafts that follow a script."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from dflash_mlx.config import FULL, DraftConfig, Rope
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.kv import Scalar, State
from dflash_mlx.loading import Pair
from dflash_mlx.sampling import Sampling
from dflash_mlx.session import Session
from dflash_mlx.targets import target_for

from .reduced import COMMON, CONFIGS, HIDDEN, VOCAB, WINDOW, build, language_model

__all__ = ["COMMON", "CONFIGS", "HIDDEN", "VOCAB", "WINDOW", "build", "language_model"]
MASK_ID = VOCAB - 1
FAMILIES = tuple(CONFIGS)


def draft_config(**changes: Any) -> DraftConfig:
    """A draft for the models above."""
    layers = changes.get("num_layers", 2)
    fields: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "num_layers": layers,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "attention_bias": False,
        "block_size": 8,
        "taps": (0, 2),
        "mask_token_id": MASK_ID,
        "rope": Rope("default", 10000.0),
        "layer_types": (FULL,) * layers,
        "causal": (False,) * layers,
        "sliding_window": None,
        "num_target_layers": 4,
        "final_logit_softcapping": None,
        "output_multiplier": 1.0,
        "input_embedding_scale": 1.0,
    }
    return DraftConfig(**(fields | changes))


def random_draft(config: DraftConfig) -> DFlashDraft:
    """A draft with random weights, the same in every call."""
    mx.random.seed(11)
    return DFlashDraft(config).prepare()


class ScriptedDraft(DFlashDraft):
    """Runs the real network, then proposes the true continuation, wrong at a chosen place.

    In the block whose anchor stands at position p, drafted token `wrong(p)` is wrong and all
    before it are right, so that just `wrong(p)` tokens are accepted.
    """

    def __init__(
        self, config: DraftConfig, truth: Sequence[int], wrong: Callable[[Scalar], Scalar]
    ) -> None:
        super().__init__(config)
        # A few more tokens than the text has, for blocks that reach beyond its end.
        self._truth = mx.array([*truth, *[0] * 64], mx.int32)
        self._wrong = wrong
        self._start: Scalar = 0
        self.prepare()

    def forward(self, block: mx.array, start: Scalar, state: State) -> tuple[mx.array, State]:
        self._start = start
        return super().forward(block, start, state)

    def wanted(self, sampling: Sampling) -> None:
        """All logits, of which the script makes others."""

    def shape_logits(self, logits: mx.array) -> mx.array:
        places = mx.arange(logits.shape[1])
        tokens = self._truth[self._start + 1 + places]
        tokens = mx.where(places == self._wrong(self._start), (tokens + 1) % VOCAB, tokens)
        right = mx.arange(VOCAB) == tokens[:, None]
        # The network's own output stays in the graph, so that its cache is written.
        return mx.where(right, 20.0, 0.0)[None] + 0 * logits


def plain_ids(family: str, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy continuation by mlx-lm's own model and cache, one token at a time."""
    return plain_text(family, prompt, count)[0]


def plain_text(family: str, prompt: Sequence[int], count: int) -> tuple[list[int], float]:
    """As `plain_ids`, and the smallest distance between the two top logits on the way."""
    model = language_model(family)
    cache_ = make_prompt_cache(model)
    logits = model(mx.array([list(prompt)]), cache=cache_)
    ids: list[int] = []
    margin = math.inf
    while len(ids) < count:
        second, first = mx.sort(logits[0, -1])[-2:].tolist()
        margin = min(margin, first - second)
        ids.append(int(mx.argmax(logits[0, -1]).item()))
        logits = model(mx.array([ids[-1:]]), cache=cache_)
    return ids, margin


def make_pair(
    family: str, draft: DFlashDraft | None, eos_ids: Sequence[int] = (), tokenizer: Any = None
) -> Pair:
    """A pair over a small model; without a tokenizer it decodes ids only."""
    target = target_for(language_model(family), draft.config.taps if draft else ())
    return Pair(
        target=target.with_draft_vocabulary(draft.vocabulary if draft else None),
        draft=draft,
        tokenizer=tokenizer,
        eos_ids=frozenset(eos_ids),
        max_context=4096,
        name=family,
        draft_name="scripted" if draft else None,
    )


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """A prompt of ordinary tokens."""
    key = mx.random.key(1000 * seed + length)
    ids: list[int] = mx.random.randint(0, MASK_ID, (length,), key=key).tolist()
    return ids


def kept_rows(session: Session) -> list[mx.array]:
    """All arrays of a session's two caches."""
    assert session.context is not None
    caches = (session.cache, session.context)
    return [a for cache in caches for pair in cache.state["layers"] if pair for a in pair]


def address(array: mx.array) -> int:
    """Where an array is in memory."""
    mx.eval(array)
    return int(np.asarray(array).__array_interface__["data"][0])
