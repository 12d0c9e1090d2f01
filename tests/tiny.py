"""A pair small enough for every test, with a real tokenizer: one token a byte."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models import llama
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dflash_mlx.loading import Pair
from dflash_mlx.options import Options
from dflash_mlx.sampling import Sampling
from dflash_mlx.targets import target_for

from .families import COMMON, draft_config, random_draft

VOCAB = 300
MASK_ID = VOCAB - 1
SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
THINKING = ("<think>", "</think>")

MESSAGES = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
ANSWER = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
PLAIN = MESSAGES + ANSWER
# Cuts the answers of earlier turns, as templates do that drop earlier thinking.
REWRITING = MESSAGES.replace(
    "m['content']", "m['content'][:3] if m['role'] == 'assistant' else m['content']"
)
REWRITING += ANSWER
OPENING = PLAIN.replace(
    "<|assistant|>{% endif",
    "<|assistant|><think>\n{% if not enable_thinking %}\n</think>\n\n{% endif %}{% endif",
)


def tokenizer(template: str | None = PLAIN, thinking: bool = False) -> TokenizerWrapper:
    """A tokenizer with a token for every byte and some special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    special = [*SPECIAL, *(THINKING if thinking else ())]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bytes_, eos_token="<|end|>", additional_special_tokens=special
    )
    fast.chat_template = template
    return TokenizerWrapper(fast, BPEStreamingDetokenizer)


@cache
def _language_model() -> Any:
    mx.random.seed(3)
    args = COMMON | {"vocab_size": VOCAB, "tie_word_embeddings": False}
    model = llama.Model(llama.ModelArgs(model_type="llama", **args))
    # The default scale gives flat logits and text of one token; this one varies.
    model.update(tree_map(lambda w: 3 * w if w.ndim > 1 else w, model.parameters()))
    mx.eval(model.parameters())
    return model


def tiny_pair(
    template: str | None = PLAIN,
    *,
    thinking: bool = False,
    draft: bool = True,
    max_context: int = 2048,
) -> Pair:
    """A llama and a draft with random weights, the same in every call."""
    config = draft_config(vocab_size=VOCAB, mask_token_id=MASK_ID, block_size=4)
    words = tokenizer(template, thinking)
    return Pair(
        target=target_for(_language_model(), config.taps if draft else ()),
        draft=random_draft(config) if draft else None,
        tokenizer=words,
        eos_ids=frozenset(words.eos_token_ids),
        max_context=max_context,
        name="tiny",
        draft_name="tiny-dflash" if draft else None,
    )


def letters(words: TokenizerWrapper) -> Sequence[int]:
    """Ids of a to z."""
    ids: list[int] = words.encode("abcdefghijklmnopqrstuvwxyz", add_special_tokens=False)
    return ids


def options(max_tokens: int = 12, **more: Any) -> Options:
    """Options under which the tiny pair answers in letters, which encode to the same tokens."""
    bias = tuple((token, 100.0) for token in letters(tokenizer()))
    return Options(max_tokens=max_tokens, sampling=Sampling(logit_bias=bias), **more)
