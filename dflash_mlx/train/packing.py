"""From texts to blocks: which tokens a block starts from, and what it has to predict.

A block at anchor a is [ids[a], mask, mask, ...] at positions a, a + 1, ...; its row k predicts
ids[a + k], row 0 nothing. Of the context it sees the tokens before a, as in decoding, where the
anchor's own features do not exist yet. Several documents make a pack, whose layers run as one;
attention takes each document by itself, so that none sees another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]

# Blocks that attend at once: bounds the memory of their scores against a long context.
AT_ONCE = 128


@dataclass(frozen=True, eq=False)
class Document:
    """A prompt and what the target wrote behind it.

    Attributes:
        ids: int32 [S], both.
        answer: place of the first token that the target wrote.
        key: names it where its features are stored.
    """

    ids: Ints
    answer: int
    key: str = ""

    @property
    def anchors(self) -> range:
        """Where a block may start: at tokens of the answer that another one follows."""
        return range(self.answer, len(self.ids) - 1)


@dataclass(frozen=True)
class Span:
    """Blocks of a pack and the tokens, by place in the pack, of the document they belong to."""

    tokens: slice
    blocks: slice


@dataclass(frozen=True, eq=False)
class Pack:
    """Documents end to end, and N blocks of b rows over them.

    Attributes:
        documents: what was packed.
        positions: int32 [S], each token's position in its own document.
        spans: which blocks see which tokens.
        anchors: int32 [N], the positions of the blocks' anchors.
        blocks: int32 [N, b], what the network gets: the anchor's id, then mask ids.
        labels: int32 [N, b - 1], what rows 1 to b - 1 have to predict; 0 behind a text's end.
        valid: bool [N, b - 1], whether there is anything to predict.
    """

    documents: tuple[Document, ...]
    positions: Ints
    spans: tuple[Span, ...]
    anchors: Ints
    blocks: Ints
    labels: Ints
    valid: Bools

    @property
    def tokens(self) -> int:
        """Context tokens in it."""
        return len(self.positions)


def choose_anchors(document: Document, most: int, random: np.random.Generator) -> Ints:
    """At most `most` places of blocks, each at most once, in order: int32 [n]."""
    places = document.anchors
    chosen = random.choice(len(places), min(most, len(places)), replace=False)
    return np.sort(chosen + places.start).astype(np.int32)


def pack(
    documents: Sequence[Document], anchors: Sequence[Ints], block_size: int, mask_id: int
) -> Pack:
    """Lay documents end to end with the blocks at `anchors`, one array a document."""
    places = np.concatenate(anchors)
    labels, valid = zip(
        *(_labels(d, a, block_size) for d, a in zip(documents, anchors, strict=True)), strict=True
    )
    blocks = np.full((len(places), block_size), mask_id, np.int32)
    blocks[:, 0] = np.concatenate([d.ids[a] for d, a in zip(documents, anchors, strict=True)])
    return Pack(
        documents=tuple(documents),
        positions=np.concatenate([np.arange(len(d.ids), dtype=np.int32) for d in documents]),
        spans=_spans([len(d.ids) for d in documents], [len(a) for a in anchors]),
        anchors=places,
        blocks=blocks,
        labels=np.concatenate(labels),
        valid=np.concatenate(valid),
    )


def group(lengths: Sequence[int], order: Sequence[int], limit: int) -> list[list[int]]:
    """Cut `order` into groups of at most `limit` tokens, one document at least."""
    groups: list[list[int]] = []
    room = 0
    for index in order:
        if lengths[index] > room or not groups:
            groups.append([])
            room = limit
        groups[-1].append(index)
        room -= lengths[index]
    return groups


def _labels(document: Document, anchors: Ints, block_size: int) -> tuple[Ints, Bools]:
    places = anchors[:, None] + np.arange(1, block_size)
    valid = places < len(document.ids)
    labels = np.where(valid, document.ids[np.minimum(places, len(document.ids) - 1)], 0)
    return labels.astype(np.int32), valid


def _spans(tokens: Sequence[int], blocks: Sequence[int]) -> tuple[Span, ...]:
    spans = []
    token, block = 0, 0
    for length, count in zip(tokens, blocks, strict=True):
        for first in range(block, block + count, AT_ONCE):
            last = min(first + AT_ONCE, block + count)
            spans.append(Span(slice(token, token + length), slice(first, last)))
        token, block = token + length, block + count
    return tuple(spans)
