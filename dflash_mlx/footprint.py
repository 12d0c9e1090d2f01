"""How much a pair takes, on disk and in memory, from the shapes of its models.

    weights       parameters x bits; a quantised group of 64 adds a scale and a bias
    target cache  a row a token for attention layers, at most the window for sliding ones; for
                  recurrent layers the states before and behind the last pass, and its rows
    context       the same rows for the layers of the draft
    allowance     what passes, copies and MLX's own buffers need on top

Caches follow `kv.py` and `recurrent.py`: slots come in steps, and a sliding layer holds what one
prompt chunk adds to its window. Sizes are in bytes. None stands for what is not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .span import Span

GROUP = 64  # parameters that share a scale and a bias
STEP = 256  # slots are added in this many
CHUNK = 512  # prompt tokens per pass
ALLOWANCE, ALLOWANCE_SHARE = 512 * 2**20, 0.05  # this, and this share of the rest

# Bits of a parameter that published files hold in 4 bits: mxfp4 has an 8-bit scale per 32. int4
# has a 16-bit scale per 32 on disk; in memory MLX wants a bias beside it, in the type of the rest.
PACKED_ON_DISK = {"mxfp4": 4.25, "int4": 4.5}


@dataclass(frozen=True)
class Kept:
    """Keys and values in fewer bits; `group` elements share a scale and a bias."""

    bits: int
    group: int

    def bytes(self, itemsize: int) -> float:
        """Of an element, where scales have `itemsize`."""
        return self.bits / 8 + 2 * itemsize / self.group


@dataclass(frozen=True)
class Rows:
    """Layers whose cache grows by a row a token.

    Attributes:
        width: elements of a row, keys and values together.
        window: positions a sliding layer sees; None where attention is full.
        latent: whether a row is one for all heads.
    """

    layers: int
    width: int
    window: int | None = None
    latent: bool = False

    def elements(self, tokens: int, span: Span | None = None) -> int:
        """Elements in the slots that `tokens` tokens need; full layers may keep a span."""
        slots, window = _in_steps(tokens), self.window
        if window is None and span is not None:
            window = span.recent + span.sink
        if window is not None:
            # Whole STEPs are dropped before a pass, and one of them is kept beyond the window.
            slots = min(slots, _in_steps(window + 2 * STEP) - STEP + CHUNK)
        return self.layers * slots * self.width


@dataclass(frozen=True)
class Recurrent:
    """Layers that keep a state of fixed size.

    Attributes:
        state: float32 elements of the matrices of one layer.
        inputs: elements of its convolution's last inputs.
        row: elements it records per row of a block, to replay those that were kept.
    """

    layers: int
    state: int
    inputs: int
    row: int

    def bytes(self, block: int, itemsize: int) -> int:
        """Both states around the last pass, and its rows."""
        states = 2 * (4 * self.state + itemsize * self.inputs)
        return self.layers * (states + itemsize * block * self.row)


@dataclass(frozen=True)
class Weights:
    """What the parameters of a model take.

    Attributes:
        parameters: of the language model; vision towers are not loaded.
        stored: how the published files hold them: bf16, fp8, mxfp4 or int4.
        packed: those of them that the files hold in 4 bits and that stay so.
        bits: set where the files are quantised already, by MLX, in groups of `group`.
    """

    parameters: int
    stored: str = "bf16"
    packed: int = 0
    bits: int | None = None
    group: int = GROUP

    def loaded(self, bits: int | None, itemsize: int) -> int:
        """In memory, quantised to `bits` while loading."""
        packed = 4.25 if self.stored == "mxfp4" else 4 + 16 * itemsize / 32
        return self._bytes(bits, itemsize, packed)

    def on_disk(self, bits: int | None) -> int:
        """In files, at `bits` or in 16."""
        return self._bytes(bits, 2, PACKED_ON_DISK.get(self.stored, 16))

    def _bytes(self, bits: int | None, itemsize: int, packed: float) -> int:
        bits = self.bits or bits
        rest = 8 * itemsize if bits is None else bits + 16 * itemsize / self.group
        return round((self.packed * packed + (self.parameters - self.packed) * rest) / 8)


@dataclass(frozen=True)
class TargetShape:
    """What a target keeps per token, and per conversation."""

    rows: tuple[Rows, ...]
    recurrent: Recurrent | None = None

    def part(self, ranks: int, staged: bool) -> TargetShape:
        """What one of several ranks keeps: the rows of its heads, or of its layers if `staged`."""
        rows = [_part(rows, ranks, staged) for rows in self.rows]
        old = self.recurrent
        if old is None or ranks == 1:
            return TargetShape(tuple(rows), old)
        if staged:
            return TargetShape(tuple(rows), replace(old, layers=-(-old.layers // ranks)))
        sizes = (old.state // ranks, old.inputs // ranks, old.row // ranks)
        return TargetShape(tuple(rows), Recurrent(old.layers, *sizes))

    def cache(self, tokens: int, block: int, itemsize: int, kv: Kept | None = None) -> int:
        """The cache at `tokens` tokens, with a block behind them."""
        each = kv.bytes(itemsize) if kv else itemsize
        grown = round(each * sum(rows.elements(tokens + block) for rows in self.rows))
        return grown + (self.recurrent.bytes(block, itemsize) if self.recurrent else 0)


@dataclass(frozen=True)
class DraftShape:
    """A draft as its config.json has it."""

    layers: int | None = None
    block: int | None = None
    taps: int | None = None
    rows: tuple[Rows, ...] | None = None

    @property
    def grows(self) -> bool:
        """Whether any layer keeps all of the text."""
        return any(rows.window is None for rows in self.rows or ())

    def context(self, tokens: int, itemsize: float, span: Span | None = None) -> int | None:
        """The keys and values of `tokens` tokens, and of a block."""
        if self.rows is None or self.block is None:
            return None
        return round(itemsize * sum(r.elements(tokens + self.block, span) for r in self.rows))


@dataclass(frozen=True)
class Estimate:
    """What a pair takes in memory.

    Attributes:
        peak: what attention holds in the largest pass, beyond the allowance.
    """

    target: int
    draft: int | None
    cache: int
    context: int | None
    peak: int = 0

    @property
    def allowance(self) -> int:
        """For passes, copies and buffers."""
        return round(ALLOWANCE + ALLOWANCE_SHARE * self._known())

    @property
    def total(self) -> int:
        """Everything that is known."""
        return self._known() + self.peak + self.allowance

    @property
    def complete(self) -> bool:
        """Whether everything is known; else the total is a lower bound."""
        return self.draft is not None and self.context is not None

    def _known(self) -> int:
        return self.target + (self.draft or 0) + self.cache + (self.context or 0)


def heads(layers: int, kv_heads: int, head_dim: int, window: int | None = None) -> Rows:
    """Attention layers with keys and values of `kv_heads` heads."""
    return Rows(layers, 2 * kv_heads * head_dim, window)


def gated_delta(
    layers: int,
    value_heads: int,
    key_heads: int = 16,
    value_dim: int = 128,
    key_dim: int = 128,
    kernel: int = 4,
) -> Recurrent:
    """Gated delta networks: a matrix per value head, and a convolution over q, k and v."""
    keys, values = key_heads * key_dim, value_heads * value_dim
    mixed = 2 * keys + values
    # Recorded are q, k, v, the output gate, and two gates per head.
    row = mixed + values + 2 * value_heads
    return Recurrent(layers, values * key_dim, (kernel - 1) * mixed, row)


def target_shape(raw: Mapping[str, Any]) -> TargetShape:
    """The shape that a target's config.json states.

    Raises:
        KeyError, TypeError, ValueError: the config lacks a field, or it is of another type.
    """
    nested = raw.get("text_config")
    text: Mapping[str, Any] = nested if isinstance(nested, Mapping) else raw
    layers = int(text["num_hidden_layers"])
    if text.get("kv_lora_rank"):
        return TargetShape(_latent(text, layers))
    kinds = _kinds(text, layers)
    count = {kind: kinds.count(kind) for kind in set(kinds)}
    full, sliding = count.get("full_attention", 0), count.get("sliding_attention", 0)
    recurrent = _recurrent(text, count.get("linear_attention", 0))
    size = (int(text["num_key_value_heads"]), _head_dim(text))
    wide = (
        int(text.get("num_global_key_value_heads") or size[0]),
        int(text.get("global_head_dim") or size[1]),
    )
    rows = (heads(full, *wide), heads(sliding, *size, text.get("sliding_window")))
    return TargetShape(tuple(r for r in rows if r.layers), recurrent)


def query_heads(raw: Mapping[str, Any]) -> tuple[int, int]:
    """Heads of a target's queries by its config.json, and their size; raises as `target_shape`."""
    nested = raw.get("text_config")
    text: Mapping[str, Any] = nested if isinstance(nested, Mapping) else raw
    return int(text["num_attention_heads"]), _head_dim(text)


def _latent(text: Mapping[str, Any], layers: int) -> tuple[Rows, ...]:
    width = int(text["kv_lora_rank"]) + int(text["qk_rope_head_dim"])
    rows = (Rows(layers, width, latent=True),)
    # The indexer's keys, with a column that stands for its values.
    index = text.get("index_head_dim")
    return (*rows, Rows(layers, int(index) + 1, latent=True)) if index else rows


def _part(rows: Rows, ranks: int, staged: bool) -> Rows:
    if staged:
        return replace(rows, layers=-(-rows.layers // ranks))
    return rows if rows.latent else replace(rows, width=-(-rows.width // ranks))


def _kinds(text: Mapping[str, Any], layers: int) -> list[str]:
    kinds = text.get("layer_types")
    interval = text.get("full_attention_interval")
    if kinds:
        # Layers that share the keys and values of others have none.
        return list(kinds)[: layers - int(text.get("num_kv_shared_layers") or 0)]
    if interval and text.get("linear_num_value_heads"):
        return [
            "linear_attention" if (i + 1) % interval else "full_attention" for i in range(layers)
        ]
    return ["full_attention"] * layers


def _recurrent(text: Mapping[str, Any], layers: int) -> Recurrent | None:
    if not layers:
        return None
    names = ("num_value_heads", "num_key_heads", "value_head_dim", "key_head_dim")
    sizes = [int(text[f"linear_{name}"]) for name in (*names, "conv_kernel_dim")]
    return gated_delta(layers, *sizes)


def _head_dim(text: Mapping[str, Any]) -> int:
    stated = text.get("head_dim")
    return int(stated or int(text["hidden_size"]) // int(text["num_attention_heads"]))


def _in_steps(slots: int) -> int:
    return math.ceil(slots / STEP) * STEP
