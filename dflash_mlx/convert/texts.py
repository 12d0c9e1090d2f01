"""Finished texts: what a target says of them, and how many rounds a draft would take.

Greedy rounds never change a text, so nothing has to be decoded again to try a draft: along a
finished text every block is drafted behind its anchor and compared with what follows, which gives
exactly the rounds that decoding would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from ..drafts.dflash import DFlashDraft
from ..sampling import Sampling, process
from ..targets.base import Target

CHUNK = 256
GREEDY = Sampling()


@dataclass(frozen=True)
class Text:
    """Ids, of which the first `prompt` were given."""

    ids: tuple[int, ...]
    prompt: int


def tokens_per_round(
    target: Target, draft: DFlashDraft, texts: Sequence[tuple[Text, mx.array]]
) -> float:
    """Of greedy rounds along finished texts, each with the target's features."""
    counts = [_rounds(target, draft, text, features) for text, features in texts]
    done = sum(rounds_ for rounds_, _ in counts)
    return sum(tokens for _, tokens in counts) / max(1, done)


def _rounds(target: Target, draft: DFlashDraft, text: Text, features: mx.array) -> tuple[int, int]:
    """How many rounds a text takes, and how many tokens they give.

    It ends where a block would reach beyond the text: what would be accepted there is not known.
    """
    width, mask = draft.config.block_size, draft.config.mask_token_id
    context, anchor = draft.new_cache(), text.prompt
    count = tokens = 0
    while anchor + width <= len(text.ids):
        start = context.length
        state = context.begin(start, anchor - start + width, fixed=False)
        state = draft.extend(features[:, start:anchor], start, state)
        context.update(state)
        context.commit(anchor - start)
        block = target.embed_block(mx.array([[text.ids[anchor]] + [mask] * (width - 1)], mx.int32))
        hidden, _ = draft.forward(block, anchor, state)
        found = _proposed(target, draft, hidden, text.ids[anchor])
        accepted = _equal(found, text.ids[anchor + 1 : anchor + width])
        count, tokens = count + 1, tokens + accepted + 1
        anchor += accepted + 1
    return count, tokens


def _proposed(target: Target, draft: DFlashDraft, hidden: mx.array, anchor: int) -> list[int]:
    logits = target.draft_logits(hidden[:, 1:], draft.shape_logits)[0]
    logits, key = process(logits, None, GREEDY), mx.random.key(0)  # nothing is sampled
    found = draft.propose(hidden[0, 1:], logits, mx.array([anchor], mx.int32), GREEDY, key)
    return cast(list[int], found.drafted.tolist())


def _equal(found: Sequence[int], wanted: Sequence[int]) -> int:
    same = 0
    while same < len(wanted) and found[same] == wanted[same]:
        same += 1
    return same


def log_probabilities(target: Target, text: Text) -> mx.array:
    """Behind every token from the end of the prompt on [answer, vocab], in float32."""
    hidden, _ = _read(target, text)
    logits = target.logits(hidden[:, text.prompt - 1 : -1])[0].astype(mx.float32)
    found = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(found)
    return found


def features(target: Target, text: Text) -> mx.array:
    _, features = _read(target, text)
    assert features is not None
    return features


def _read(target: Target, text: Text) -> tuple[mx.array, mx.array | None]:
    """Hidden states and features of a whole text."""
    cache, hidden, features = target.new_cache(), [], []
    for start in range(0, len(text.ids), CHUNK):
        ids = mx.array([text.ids[start : start + CHUNK]], mx.int32)
        state = cache.begin(start, ids.shape[1], fixed=False)
        rows, tapped, state = target.forward(ids, start, state)
        cache.update(state)
        cache.commit(ids.shape[1])
        hidden.append(rows)
        features += [] if tapped is None else [tapped]
        mx.eval(rows, features, cache.arrays())
    return mx.concatenate(hidden, axis=1), mx.concatenate(features, axis=1) if features else None


def drift(before: Sequence[mx.array], after: Sequence[mx.array]) -> float:
    """Mean KL divergence, in nats per token."""
    rows = [(mx.exp(p) * (p - q)).sum(axis=-1) for p, q in zip(before, after, strict=True)]
    return cast(float, mx.concatenate(rows).mean().item())
