"""The published `dflash-mlx` 0.1.8 for `peers.py`: its engine with guesses of ours."""

from typing import Any

import mlx.core as mx
from peers_cells import LONGEST, MASK_ID, TAPS, Decoded, Script, Task
from reduced import HIDDEN, VOCAB

from dflash_mlx.draft_backend import EagerDraftBackend
from dflash_mlx.engine.events import SummaryEvent, TokenEvent
from dflash_mlx.engine.target_ops import bind_draft_to_target, resolve_target_ops
from dflash_mlx.model import DFlashDraftModel, DFlashDraftModelArgs
from dflash_mlx.runtime import stream_dflash_generate
from dflash_mlx.runtime.context import build_offline_runtime_context

REFUSALS = (NotImplementedError,)


class Scripted(EagerDraftBackend):
    """Runs the real network, then proposes what the script says."""

    def __init__(self, script: Script | None) -> None:
        self._script = script

    def draft_greedy(self, *, staged_first: mx.array, draft_cache: Any, **rest: Any) -> mx.array:
        drafted = super().draft_greedy(staged_first=staged_first, draft_cache=draft_cache, **rest)
        if self._script is None:
            return drafted
        # The cache has the features of all committed tokens, so the anchor stands behind them.
        position, anchor = draft_cache[0].offset, int(staged_first[0].item())
        tokens = self._script.drafted(position, anchor, drafted.shape[0])
        return mx.array(tokens, drafted.dtype) + 0 * drafted


def draft(model: Any, block: int) -> DFlashDraftModel:
    mx.random.seed(11)
    args = DFlashDraftModelArgs(
        model_type="qwen3",
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=4,
        rms_norm_eps=1e-6,
        vocab_size=VOCAB,
        num_key_value_heads=2,
        max_position_embeddings=LONGEST,
        rope_theta=10000.0,
        head_dim=16,
        tie_word_embeddings=False,
        num_target_layers=len(model.layers),
        block_size=block,
        layer_types=("full_attention",) * 2,
        dflash_config={"target_layer_ids": list(TAPS), "mask_token_id": MASK_ID},
    )
    result = DFlashDraftModel(args)
    mx.eval(result.parameters())
    return result


def decode(model: Any, family: str, task: Task) -> Decoded:
    operations = resolve_target_ops(model)
    operations.install_speculative_hooks(model)
    guesses = draft(model, task.block)
    bind_draft_to_target(guesses, model, target_ops=operations)
    events = stream_dflash_generate(
        target_model=model,
        target_ops=operations,
        draft_model=guesses,
        draft_backend=Scripted(task.script),
        prompt_tokens_override=task.prompt,
        max_new_tokens=task.tokens,
        stop_token_ids=sorted(task.stop),
        runtime_context=build_offline_runtime_context(verify_mode="dflash"),
    )
    ids: list[int] = []
    accepted: list[int] = []
    for event in events:
        if isinstance(event, TokenEvent):
            ids.append(event.token_id)
        elif isinstance(event, SummaryEvent):
            accepted += event.acceptance_history
    return Decoded(ids, accepted)
