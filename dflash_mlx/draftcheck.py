"""Whether a draft, as it was loaded, still is the draft that was published.

The target's verification hides every fault of a draft: the text stays right, only nothing is
accepted any more. So after loading, blocks are drafted behind a built-in text and compared with
the same blocks in float32, on the same inputs. In the reference the vectors (norms, biases) are
float32, which makes every product float32; the matrices stay as they are stored and are widened
one at a time, so that a draft that is not quantised is not held twice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from .drafts.dflash import DFlashDraft
from .errors import CheckpointError, UnsupportedError
from .sampling import Sampling, process
from .targets.base import Target

# Prose, code and digits: what overflows often does so behind a certain kind of token.
TEXT = """Write a binary search, then say how many steps 4,096 names take.

```python
def search(items, wanted):
    low, high = 0, len(items)
    while low < high:
"""
LENGTH = 40  # tokens of it that are used
CONTEXT = 16  # of which no block starts before this many
ROWS = 30  # drafted tokens that are compared, at least
# Of the tokens drafted by the embedded draft, this share equals those in float32: 0.96 in
# bfloat16, 0.98 in 8 bits, 0.7 in 4, 0.4 in 3, 0.2 in 2; what drafting gains over plain decoding
# shrinks with it to 0.85 in 4 bits, 0.6 in 3, 0.3 in 2. An overflow leaves 0. That was a DFlash 1
# draft. On a path of DFlash 2 a token that differs makes others differ: 0.47 in 4 bits, with 0.98
# of the tokens per round.
FLOOR = 0.35
GREEDY = Sampling()

Tokens = list[int | None]  # None where the logits are not finite


@dataclass(frozen=True)
class Agreement:
    """How many drafted tokens equal those in float32; the latter run is left out where it would
    be the same computation."""

    equal: int
    rows: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.equal / self.rows


def check_draft(
    target: Target,
    draft: DFlashDraft,
    prompt: Sequence[int],
    name: str,
    original: Callable[[], DFlashDraft],
    bits: int | None = None,
) -> Agreement:
    """Compare a loaded draft with itself in float32.

    Args:
        target: with the draft's taps.
        draft: as it was loaded.
        prompt: ids of `TEXT`; `LENGTH` of them are used.
        name: of the draft, for the error text.
        original: reads the draft as it is stored; called only for a quantised draft.
        bits: to how many bits the draft was quantised while loading.

    Raises:
        CheckpointError: the weights of the draft hold infinities or NaN.
        UnsupportedError: numbers overflow, or less than `FLOOR` of the tokens are the same.
    """
    ids = [i % target.vocab_size for i in prompt[:LENGTH]]
    features = _features(target, ids)
    kind = _kind(draft)
    exact = kind == "float32"
    anchors = _anchors(len(ids), draft.config.block_size)
    loaded = _drafted(target, draft, ids, features, anchors[-1:] if exact else anchors)
    if exact:
        _check_weights(loaded, name)
        return Agreement(len(loaded), len(loaded))
    reference = _in_float32(original() if kind == "quantised" else draft)
    wanted = _drafted(target, reference, ids, features, anchors)
    _check_weights(wanted, name)
    return _agreement(loaded, wanted, name, bits, draft.dtype)


def _agreement(
    loaded: Tokens, wanted: Tokens, name: str, bits: int | None, dtype: mx.Dtype
) -> Agreement:
    form = f"quantised to {bits} bits" if bits else f"in {_name(dtype)}"
    way = "leave out --draft-bits" if bits == 8 else "use --draft-bits 8, or leave it out"
    way = way if bits else "use --dtype float32, or another copy of the draft"
    if None in loaded:
        raise UnsupportedError(f"the draft {name} overflows {form}; {way}")
    found = Agreement(sum(a == b for a, b in zip(loaded, wanted, strict=True)), len(wanted))
    if found.share < FLOOR:
        raise UnsupportedError(
            f"the draft {name} {form} proposes {found.equal} of {found.rows} tokens as in float32, "
            f"expected at least {FLOOR:.0%}: hardly any would be accepted; {way}"
        )
    return found


def _check_weights(tokens: Tokens, name: str) -> None:
    if None in tokens:
        raise CheckpointError(
            f"the draft {name} computes infinities or NaN even in float32: its weights are "
            "damaged; download it again"
        )


def _features(target: Target, ids: Sequence[int]) -> mx.array:
    """What the draft gets of the target [1, L, taps * hidden_size].

    Raises UnsupportedError where they are not finite.
    """
    state = target.new_cache().begin(0, len(ids), fixed=False)
    _, features, _ = target.forward(mx.array([ids], mx.int32), 0, state)
    assert features is not None, "the target has no taps"
    parts = mx.split(features[0], len(target.taps), axis=-1)
    finite = [bool(mx.isfinite(part).all().item()) for part in parts]
    if not all(finite):
        kind = _name(target.dtype)
        way = "--dtype bfloat16" if target.dtype == mx.float16 else "another copy of the target"
        raise UnsupportedError(
            f"the target's hidden states behind layer {target.taps[finite.index(False)]} overflow "
            f"in {kind}, so that nothing can be drafted from them; use {way}, or --no-draft"
        )
    return features


def _drafted(
    target: Target,
    draft: DFlashDraft,
    ids: Sequence[int],
    features: mx.array,
    anchors: Sequence[int],
) -> Tokens:
    """The tokens of one block behind each anchor, the anchors in ascending order."""
    blocks = _blocks(target, draft, ids, features, anchors)
    size = draft.config.block_size - 1
    # One product with the head, which may be larger than the draft.
    hidden = mx.concatenate(blocks)
    logits = target.draft_logits(hidden[None], draft.shape_logits)[0]
    finite = mx.isfinite(logits).all(axis=-1)
    logits = process(logits, None, GREEDY)
    tokens = []
    for first, anchor in enumerate(anchors):
        rows = slice(first * size, (first + 1) * size)
        behind = mx.array([ids[anchor]], mx.int32)
        key = mx.random.key(0)  # for sampling; nothing is sampled
        tokens.append(draft.propose(hidden[rows], logits[rows], behind, GREEDY, key).drafted)
    found = mx.where(finite, mx.concatenate(tokens), -1)
    return [None if token < 0 else token for token in cast(list[int], found.tolist())]


def _blocks(
    target: Target,
    draft: DFlashDraft,
    ids: Sequence[int],
    features: mx.array,
    anchors: Sequence[int],
) -> list[mx.array]:
    """Per anchor what the draft's last layer makes of the masks [width - 1, hidden_size]."""
    context, blocks = draft.new_cache(), []
    width, mask = draft.config.block_size, draft.config.mask_token_id
    for anchor in anchors:
        start, rows = context.length, anchor - context.length
        state = context.begin(start, rows + width, fixed=False)
        state = draft.extend(features[:, start:anchor], start, state)
        context.update(state)
        context.commit(rows)
        block = target.embed_block(mx.array([[ids[anchor]] + [mask] * (width - 1)], mx.int32))
        hidden, _ = draft.forward(block, anchor, state)
        blocks.append(hidden[0, 1:])
        mx.eval(blocks[-1], context.arrays())  # block by block: one matrix is widened at a time
    return blocks


def _anchors(length: int, block: int) -> list[int]:
    """Places of anchors in a text, as many as give `ROWS` drafted tokens if there are so many."""
    first = min(CONTEXT, length - 1)
    count = min(-(-ROWS // (block - 1)), length - first)
    return [first + i * (length - 1 - first) // max(1, count - 1) for i in range(count)]


def _kind(draft: DFlashDraft) -> str:
    """What the draft computes with: "quantised", or the name of its floating type."""
    if any(isinstance(m, nn.QuantizedLinear | nn.QuantizedEmbedding) for m in draft.modules()):
        return "quantised"
    return _name(draft.dtype)


def _in_float32(draft: DFlashDraft) -> DFlashDraft:
    """A twin of `draft` that computes in float32 and shares its matrices."""
    twin = copy.deepcopy(draft, {id(array): array for _, array in _parameters(draft)})
    twin.update(tree_map(_widen, twin.parameters()))
    return twin.prepare()


def _widen(parameter: mx.array) -> mx.array:
    vector = parameter.ndim == 1 and mx.issubdtype(parameter.dtype, mx.floating)
    return parameter.astype(mx.float32) if vector else parameter


def _parameters(module: nn.Module) -> list[tuple[str, mx.array]]:
    return cast(list[tuple[str, mx.array]], tree_flatten(module.parameters()))


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
