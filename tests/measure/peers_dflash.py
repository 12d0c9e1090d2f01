"""The published `dflash` 0.1.0 for `peers.py`: its loop, with guesses of ours."""

from functools import cache
from typing import Any

import mlx.core as mx
from dflash import model_mlx as published
from mlx_lm.tokenizer_utils import TokenizerWrapper
from peers_cells import LONGEST, MASK_ID, TAPS, Decoded, Script, Task
from reduced import HIDDEN, VOCAB
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

REFUSALS = (NotImplementedError,)


class Scripted(published.DFlashDraftModel):
    """Runs the real network, then proposes what the script says."""

    def __init__(self, config: published.DFlashConfig, script: Script | None) -> None:
        super().__init__(config)
        self._script = script

    def __call__(
        self, inputs: mx.array, target_hidden: mx.array, cache: Any, logits_start: int = 0
    ) -> mx.array:
        logits = super().__call__(inputs, target_hidden, cache, logits_start)
        if self._script is None:
            return logits
        # The cache has the features of all committed tokens, so the anchor stands behind them.
        position, anchor = cache[0].offset, int(inputs[0, 0].item())
        tokens = mx.array(self._script.drafted(position, anchor, logits.shape[1]))
        return mx.where(mx.arange(VOCAB) == tokens[:, None], 20.0, 0.0)[None] + 0 * logits


def draft(model: Any, block: int, script: Script | None) -> Scripted:
    mx.random.seed(11)
    config = published.DFlashConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        vocab_size=VOCAB,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        max_position_embeddings=LONGEST,
        block_size=block,
        target_layer_ids=TAPS,
        num_target_layers=len(model.layers),
        mask_token_id=MASK_ID,
    )
    result = Scripted(config, script)
    mx.eval(result.parameters())
    return result


@cache
def words() -> PreTrainedTokenizerFast:
    """The loop asks for a tokenizer; its texts are not looked at."""
    vocab = {f"w{index}": index for index in range(VOCAB)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocab, unk_token="w0")))


def decode(model: Any, family: str, task: Task) -> Decoded:
    guesses = draft(model, task.block, task.script)
    tokenizer = TokenizerWrapper(words(), eos_token_ids=set(task.stop))
    ids: list[int] = []
    accepted: list[int] = []
    for response in published.stream_generate(
        model, guesses, tokenizer, mx.array(task.prompt), max_tokens=task.tokens
    ):
        ids += response.tokens
        if response.accepted is not None:  # a round, whose bonus it counts as well
            accepted.append(response.accepted - 1)
    return Decoded(ids, accepted)
