"""From a llama-architecture GGUF to a folder that mlx-lm loads.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Two things in it differ
from the checkpoint it was made of. llama.cpp rotates neighbouring dimensions of a head together
(0 with 1), mlx-lm rotates halves (0 with d/2), so llama.cpp's converter reorders the rows of q and
k and here they are put back. And the tokenizer lies in pieces in the metadata.

`mx.load` reads the tensors but maps the file and trusts its header, so the header is read here
first and every extent in it is held against the file.
"""

import json
import math
import mmap
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import mlx.core as mx

from .checkpoint import check_names
from .errors import CheckpointError, UnsupportedError, UsageError
from .paths import whole_folder

T = TypeVar("T")


class _Layout(NamedTuple):
    """How a tensor type is stored: so many elements in so many bytes; bits if quantised."""

    name: str
    elements: int
    nbytes: int
    bits: int | None


class _Tensor(NamedTuple):
    kind: int
    shape: tuple[int, ...]  # rows first, as MLX counts
    offset: int


_LAYOUTS = {
    0: _Layout("F32", 1, 4, None),
    1: _Layout("F16", 1, 2, None),
    2: _Layout("Q4_0", 32, 18, 4),
    3: _Layout("Q4_1", 32, 20, 4),
    8: _Layout("Q8_0", 32, 34, 8),
}
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_SPLITS = {"gpt-2": _BYTES, "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTES]}}
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_CONTROL, _USER_DEFINED = 3, 4  # of token_type


def convert_gguf(source: Path, folder: Path, *, dtype: mx.Dtype = mx.float16) -> None:
    """Write the model, tokenizer and chat template of a GGUF into a new `folder`.

    Tensors are dequantised in float32 and all stored as `dtype`. Nothing half-written stays
    after an error. Raises UsageError if `folder` exists, CheckpointError if `source` is no whole
    GGUF or the disk is full, and UnsupportedError for anything but a plain llama with F32, F16,
    Q4_0, Q4_1 or Q8_0 tensors and a gpt2 tokenizer.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists; remove it or name another folder")
    gguf = _read_header(source)
    config = _config(gguf)
    files = {"config.json": config, **_tokenizer_files(gguf)}
    tensors = _tensors(gguf, config, dtype)
    with whole_folder(folder) as partial:
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=1)
            (partial / name).write_text(text, encoding="utf-8")
        _save(partial / "model.safetensors", tensors)


class _Header(NamedTuple):
    path: Path
    meta: dict[str, Any]
    tensors: dict[str, _Tensor]

    def need(self, key: str, kind: type[T], default: T | None = None) -> T:
        value = self.meta.get(key, default)
        if not isinstance(value, kind):
            raise CheckpointError(
                f"{self.path}: metadata {key} is {value!r}, expected {kind.__name__}"
            )
        return value

    def count(self, key: str, default: int | None = None) -> int:
        if (value := self.need(key, int, default)) < 1:
            raise CheckpointError(f"{self.path}: metadata {key} is {value}, expected 1 or more")
        return value


def _read_header(path: Path) -> _Header:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            gguf = _Header(path, *reader.header())
            _check_supported(gguf)
            reader.check_extents(gguf)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, struct.error, MemoryError) as error:
        raise CheckpointError(f"{path}: not a whole GGUF ({error}); download it again") from None
    return gguf


def _check_supported(gguf: _Header) -> None:
    if (architecture := gguf.need("general.architecture", str)) != "llama":
        raise UnsupportedError(f"{gguf.path}: architecture {architecture!r}; supported: 'llama'")
    for name, tensor in gguf.tensors.items():
        if tensor.kind not in _LAYOUTS:
            known = ", ".join(layout.name for layout in _LAYOUTS.values())
            raise UnsupportedError(
                f"{gguf.path}: {name} has tensor type {tensor.kind}; supported: {known}"
            )


class _Reader:
    """Reads a GGUF header; ValueError or struct.error where the file ends or makes no sense."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def header(self) -> tuple[dict[str, Any], dict[str, _Tensor]]:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not start with 'GGUF'")
        self.at = 4
        if (version := self.number("I")) not in (2, 3):
            raise ValueError(f"version {version}, expected 2 or 3")
        tensors, pairs = self.number("Q"), self.number("Q")
        meta = {self.string(): self.value(self.number("I")) for _ in range(pairs)}
        return meta, dict(self.tensor() for _ in range(tensors))

    def number(self, code: str) -> Any:
        return self.numbers(f"<{code}")[0]

    def numbers(self, code: str) -> tuple[Any, ...]:
        values = struct.unpack_from(code, self.data, self.at)
        self.at += struct.calcsize(code)
        return values

    def string(self) -> str:
        length = self.number("Q")
        self.check_end(self.at + length)
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(self.scalar(kind))
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        return list(self.numbers(f"<{count}{self.scalar(kind)}"))

    def scalar(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"metadata of unknown type {kind}")
        return _SCALARS[kind]

    def tensor(self) -> tuple[str, _Tensor]:
        name = self.string()
        if (dims := self.number("I")) > 4:
            raise ValueError(f"{name} has {dims} dimensions")
        shape = self.numbers(f"<{dims}Q")[::-1]
        return name, _Tensor(self.number("I"), shape, self.number("Q"))

    def check_extents(self, gguf: _Header) -> None:
        alignment = gguf.count("general.alignment", 32)
        start = -(-self.at // alignment) * alignment
        for name, (kind, shape, offset) in gguf.tensors.items():
            layout = _LAYOUTS[kind]
            blocks, rest = divmod(shape[-1] if shape else 1, layout.elements)
            if rest:
                raise ValueError(f"{name}: rows of {shape[-1]} are no whole {layout.name} blocks")
            self.check_end(start + offset + math.prod(shape[:-1]) * blocks * layout.nbytes)

    def check_end(self, end: int) -> None:
        if end > len(self.data):
            raise ValueError(f"expected at least {end} bytes, the file has {len(self.data)}")


def _config(gguf: _Header) -> dict[str, Any]:
    scaling = gguf.need("llama.rope.scaling.type", str, "none")
    if scaling != "none" or "rope_freqs.weight" in gguf.tensors:
        raise UnsupportedError(f"{gguf.path}: scaled RoPE; supported: plain RoPE")
    heads = gguf.count("llama.attention.head_count")
    hidden = gguf.count("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": gguf.count("llama.block_count"),
        "intermediate_size": gguf.count("llama.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.count("llama.attention.head_count_kv", heads),
        "head_dim": gguf.count("llama.attention.key_length", hidden // heads),
        "rms_norm_eps": _short(gguf.need("llama.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": _short(gguf.need("llama.rope.freq_base", float, 10000.0)),
        "max_position_embeddings": gguf.count("llama.context_length"),
        "vocab_size": len(gguf.need("tokenizer.ggml.tokens", list)),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": gguf.meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": gguf.need("tokenizer.ggml.eos_token_id", int),
    }


def _short(value: float) -> float:
    """A float32 as it was typed: 1e-05, not 9.999999747378752e-06."""
    return float(f"{value:.7g}")


def _tensors(gguf: _Header, config: dict[str, Any], dtype: mx.Dtype) -> dict[str, mx.array]:
    try:
        stored = cast(dict[str, mx.array], mx.load(str(gguf.path), format="gguf"))
    except RuntimeError as error:
        raise CheckpointError(f"{gguf.path}: {error}") from error
    tensors = {}
    for name, tensor in gguf.tensors.items():
        weight = _dequantise(stored, name, _LAYOUTS[tensor.kind].bits).astype(dtype)
        mx.eval(weight)
        tensors[_new_name(gguf.path, name)] = weight
    check_names(tensors, _expected(config), str(gguf.path))
    for i in range(config["num_hidden_layers"]):
        for part, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
            name = f"model.layers.{i}.self_attn.{part}_proj.weight"
            tensors[name] = _undo_permute(tensors[name], config[heads])
    return tensors


def _dequantise(stored: dict[str, mx.array], name: str, bits: int | None) -> mx.array:
    """The tensor in float32. MLX reads GGUF blocks as its own affine groups of 32."""
    weight = stored.pop(name)
    if bits is None:
        return weight.astype(mx.float32)
    stem = name.removesuffix("weight")
    scales = stored.pop(stem + "scales").astype(mx.float32)
    biases = stored.pop(stem + "biases").astype(mx.float32)
    return mx.dequantize(weight, scales, biases, group_size=32, bits=bits)


def _undo_permute(weight: mx.array, heads: int) -> mx.array:
    # [heads, d/2, 2, in] -> [heads, 2, d/2, in]
    return weight.reshape(heads, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def _new_name(path: Path, name: str) -> str:
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if kind == "weight" and stem in _TOP:
        return f"{_TOP[stem]}.weight"
    if kind == "weight" and layer and layer[2] in _LAYER:
        return f"model.layers.{layer[1]}.{_LAYER[layer[2]]}.weight"
    raise UnsupportedError(f"{path}: tensor {name} is not part of a plain llama")


def _expected(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, middle = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes: list[tuple[int, ...]] = [
        (q, hidden),
        (kv, hidden),
        (kv, hidden),
        (hidden, q),
        (middle, hidden),
    ]
    shapes += [(middle, hidden), (hidden, middle), (hidden,), (hidden,)]
    layer = dict(zip(_LAYER.values(), shapes, strict=True))
    table = (config["vocab_size"], hidden)
    expected = {"model.embed_tokens.weight": table, "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        expected["lm_head.weight"] = table
    for i in range(config["num_hidden_layers"]):
        expected |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return expected


def _save(path: Path, tensors: dict[str, mx.array]) -> None:
    try:
        mx.save_safetensors(str(path), tensors, metadata={"format": "mlx"})
    except RuntimeError as error:
        raise CheckpointError(f"{path}: not written, is the disk full? ({error})") from error


def _tokenizer_files(gguf: _Header) -> dict[str, Any]:
    tokens = gguf.need("tokenizer.ggml.tokens", list)
    ids = {
        f"{kind}_token": gguf.need(f"tokenizer.ggml.{name}_token_id", int)
        for kind, name in _SPECIAL.items()
        if f"tokenizer.ggml.{name}_token_id" in gguf.meta
    }
    if not all(0 <= token < len(tokens) for token in ids.values()):
        raise CheckpointError(f"{gguf.path}: a special token outside the {len(tokens)} tokens")
    files: dict[str, Any] = {
        "tokenizer.json": _tokenizer(gguf, tokens),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": gguf.count("llama.context_length"),
            **{kind: tokens[token] for kind, token in ids.items()},
        },
        "generation_config.json": {"eos_token_id": [ids["eos_token"]]},
    }
    if "tokenizer.chat_template" in gguf.meta:
        files["chat_template.jinja"] = gguf.need("tokenizer.chat_template", str)
    return files


def _tokenizer(gguf: _Header, tokens: list[str]) -> dict[str, Any]:
    model = gguf.need("tokenizer.ggml.model", str)
    split = gguf.need("tokenizer.ggml.pre", str, "gpt-2")
    if model != "gpt2" or split not in _SPLITS or gguf.meta.get("tokenizer.ggml.add_bos_token"):
        raise UnsupportedError(
            f"{gguf.path}: tokenizer {model!r} with {split!r} splits; supported: 'gpt2' with "
            f"{' or '.join(map(repr, _SPLITS))} and no token added in front"
        )
    kinds = gguf.need("tokenizer.ggml.token_type", list)
    vocab = {token: i for i, token in enumerate(tokens)}
    if not len(kinds) == len(tokens) == len(vocab):
        raise CheckpointError(f"{gguf.path}: {len(tokens)} tokens, {len(vocab)} of them different")
    merges = gguf.need("tokenizer.ggml.merges", list)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(i, tokens[i], kind)
            for i, kind in enumerate(kinds)
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": _SPLITS[split],
        "post_processor": None,
        "decoder": _BYTES,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "fuse_unk": False},
    }


def _added(token: int, text: str, kind: int) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token, "content": text, "special": kind == _CONTROL, **plain}
