"""A tokenizer for the small models of all families, and their guided text by mlx-lm alone."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dflash_mlx.guide import Guide, Matcher, words_of

from .families import VOCAB, language_model

LETTERS = 'abcdefghijklmnopqrstuvwxyz0123456789{}[]":,.-\u0120'  # the last one is a space
PAIRS = ("ab", "tr", "ue", "true", "nu", "ll", "null", '",', '":', '{"')
EOS = len(LETTERS) + len(PAIRS)


@cache
def tokenizer() -> TokenizerWrapper:
    """A token a letter and a few longer ones; the models' other ids stand for nothing."""
    parts = {text: i for i, text in enumerate([*LETTERS, *PAIRS])}
    merges = [("a", "b"), ("t", "r"), ("u", "e"), ("tr", "ue"), ("n", "u"), ("l", "l")]
    merges += [("nu", "ll"), ('"', ","), ('"', ":"), ("{", '"')]
    words = Tokenizer(models.BPE(parts, merges))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=words)
    fast.add_special_tokens({"eos_token": "<e>"})
    return TokenizerWrapper(fast, BPEStreamingDetokenizer)


@cache
def words() -> Any:
    return words_of(tokenizer(), VOCAB, frozenset(tokenizer().eos_token_ids))


def ids_allowed(matcher: Matcher) -> list[int]:
    """Which tokens may come next."""
    bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")
    return np.nonzero(bits[:VOCAB])[0].tolist()


def guided_ids(family: str, prompt: Sequence[int], guide: Guide, count: int) -> list[int]:
    """Greedy continuation by mlx-lm's own model and cache, of tokens that the guide allows."""
    model, matcher = language_model(family), Matcher(guide, words())
    cache_ = make_prompt_cache(model)
    logits = model(mx.array([list(prompt)]), cache=cache_)
    ids: list[int] = []
    while len(ids) < count and not matcher.ended:
        allowed = ids_allowed(matcher)
        row = np.array(logits[0, -1])
        ids.append(allowed[int(row[allowed].argmax())])
        matcher.take(ids[-1])
        logits = model(mx.array([ids[-1:]]), cache=cache_)
    return ids
