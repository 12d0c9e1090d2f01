"""Small random-weight models of the real architectures, and drafts that follow a script."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import mlx.core as mx
from mlx_lm.models import llama, qwen3, qwen3_moe
from mlx_lm.models.cache import make_prompt_cache

from dflash_mlx.config import FULL, SLIDING, DraftConfig, Rope
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.kv import Scalar, State
from dflash_mlx.loading import Pair
from dflash_mlx.targets import target_for

VOCAB = 64
WINDOW = 16
HIDDEN = 48
MASK_ID = VOCAB - 1

COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 4,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _llama(**more: Any) -> Any:
    return llama.Model(llama.ModelArgs(model_type="llama", **COMMON, **more))


def _qwen3(**more: Any) -> Any:
    return qwen3.Model(qwen3.ModelArgs(model_type="qwen3", head_dim=16, **COMMON, **more))


def _qwen3_moe() -> Any:
    more = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    rest = {"decoder_sparse_step": 1, "mlp_only_layers": [1], "norm_topk_prob": True}
    args = {"head_dim": 16, "tie_word_embeddings": False, **COMMON, **more, **rest}
    return qwen3_moe.Model(qwen3_moe.ModelArgs(model_type="qwen3_moe", **args))


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: _llama(tie_word_embeddings=False, rope_scaling=LLAMA3_ROPE),
    "llama-tied": lambda: _llama(tie_word_embeddings=True),
    "llama-sliding": lambda: _llama(
        layer_types=[FULL, SLIDING, SLIDING, FULL], sliding_window=WINDOW
    ),
    "qwen3": lambda: _qwen3(tie_word_embeddings=False),
    "qwen3_moe": _qwen3_moe,
}


@cache
def language_model(family: str) -> Any:
    """A float32 model with random weights, the same in every call."""
    mx.random.seed(7)
    model = FAMILIES[family]()
    # The default scale gives flat logits and text of one token; this one varies.
    model.update(_scaled(model.parameters(), 3.0))
    mx.eval(model.parameters())
    return model


def _scaled(tree: Any, factor: float) -> Any:
    if isinstance(tree, dict):
        return {k: _scaled(v, factor) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_scaled(v, factor) for v in tree]
    return tree * factor if tree.ndim > 1 else tree


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

    def shape_logits(self, logits: mx.array) -> mx.array:
        places = mx.arange(logits.shape[1])
        tokens = self._truth[self._start + 1 + places]
        tokens = mx.where(places == self._wrong(self._start), (tokens + 1) % VOCAB, tokens)
        right = mx.arange(VOCAB) == tokens[:, None]
        # The network's own output stays in the graph, so that its cache is written.
        return mx.where(right, 20.0, 0.0)[None] + 0 * logits


def plain_ids(family: str, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy continuation by mlx-lm's own model and cache, one token at a time."""
    model = language_model(family)
    cache_ = make_prompt_cache(model)
    logits = model(mx.array([list(prompt)]), cache=cache_)
    ids: list[int] = []
    while len(ids) < count:
        ids.append(int(mx.argmax(logits[0, -1]).item()))
        logits = model(mx.array([ids[-1:]]), cache=cache_)
    return ids


def make_pair(
    family: str, draft: DFlashDraft | None, eos_ids: Sequence[int] = (), tokenizer: Any = None
) -> Pair:
    """A pair over a small model; without a tokenizer it decodes ids only."""
    return Pair(
        target=target_for(language_model(family), draft.config.taps if draft else ()),
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
