"""The tokenizer and the chat template, put together from a GGUF's metadata."""

from __future__ import annotations

from typing import Any

from ..errors import CheckpointError, UnsupportedError
from .header import Header

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
# Byte-level after a split of their own, by the expressions that these models publish.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> dict[str, Any]:
    words: dict[str, Any] = {"type": "Split", "pattern": {"Regex": _WORDS % digits}}
    words |= {"behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [words, {**_BYTES, "use_regex": False}]}


_SPLITS = {
    "gpt-2": _BYTES,
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTES]},
    "qwen2": _split(""),
    "llama-bpe": _split("{1,3}"),
}
_ADDS_BOS = ("llama-bpe",)  # unless told otherwise
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # of token_type


def tokenizer_files(gguf: Header) -> dict[str, Any]:
    """tokenizer.json and what belongs to it: JSON values, and the template as text."""
    tokens = gguf.need("tokenizer.ggml.tokens", list)
    ids = {
        f"{kind}_token": gguf.need(f"tokenizer.ggml.{name}_token_id", int)
        for kind, name in _SPECIAL.items()
        if f"tokenizer.ggml.{name}_token_id" in gguf.meta
    }
    if not all(0 <= token < len(tokens) for token in ids.values()):
        raise CheckpointError(f"{gguf.path}: a special token outside the {len(tokens)} tokens")
    files: dict[str, Any] = {
        "tokenizer.json": _tokenizer(gguf, tokens, ids.get("bos_token")),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": gguf.count(f"{gguf.architecture}.context_length"),
            **{kind: tokens[token] for kind, token in ids.items()},
        },
        "generation_config.json": {"eos_token_id": [ids["eos_token"]]},
    }
    if "tokenizer.chat_template" in gguf.meta:
        files["chat_template.jinja"] = gguf.need("tokenizer.chat_template", str)
    return files


def _tokenizer(gguf: Header, tokens: list[str], bos: int | None) -> dict[str, Any]:
    model = gguf.need("tokenizer.ggml.model", str)
    split = gguf.need("tokenizer.ggml.pre", str, "gpt-2")
    if model != "gpt2" or split not in _SPLITS:
        raise UnsupportedError(
            f"{gguf.path}: tokenizer {model!r} with {split!r} splits; supported: 'gpt2' with "
            f"{' or '.join(map(repr, _SPLITS))}"
        )
    kinds = gguf.need("tokenizer.ggml.token_type", list)
    if not len(kinds) == len(tokens) == len(set(tokens)):
        count = len(set(tokens))
        raise CheckpointError(f"{gguf.path}: {len(tokens)} tokens, {count} of them different")
    adds = gguf.need("tokenizer.ggml.add_bos_token", bool, split in _ADDS_BOS)
    if adds and bos is None:
        raise CheckpointError(f"{gguf.path}: no token to add in front, but add_bos_token is set")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(i, tokens[i], kind)
            for i, kind in enumerate(kinds)
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if split == "qwen2" else None,
        "pre_tokenizer": _SPLITS[split],
        "post_processor": _in_front(tokens[bos], bos) if adds and bos is not None else None,
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "vocab": {t: i for i, t in enumerate(tokens) if kinds[i] != _UNUSED},
            "merges": gguf.need("tokenizer.ggml.merges", list),
            "fuse_unk": False,
            **({"ignore_merges": True} if split == "llama-bpe" else {}),
        },
    }


def _in_front(token: str, id_: int) -> dict[str, Any]:
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    one, other = ({"Sequence": {"id": x, "type_id": i}} for i, x in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, one],
        "pair": [first, one, other],
        "special_tokens": {token: {"id": token, "ids": [id_], "tokens": [token]}},
    }


def _added(token: int, text: str, kind: int) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token, "content": text, "special": kind == _CONTROL, **plain}
