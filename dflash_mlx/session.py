"""What one conversation remembers: its ids, the target's cache and the draft's context.

A session may be stopped anywhere, even in a pass: only rows that `ids` and both lengths agree on
count, and `prefill` starts from the longest prefix of the prompt that they do agree on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx

from .drafts.dflash import DFlashDraft
from .kv import STEP, KVCache, recent_of
from .targets.base import Target

Progress = Callable[[int, int], None]
GATHERED = 16  # so many features of tokens that no block brought are added at once


class Chunk(NamedTuple):
    """One pass of a prefill.

    Attributes:
        done, total: ids computed so far, and ids to compute.
        cached: ids that were in the caches already.
        logits: behind the last id of the prompt [1, vocab]; None before the last chunk.
    """

    done: int
    total: int
    cached: int
    logits: mx.array | None


class Session:
    """The memory of one conversation with a pair; not to be used by two generations at once.

    Attributes:
        ids: the tokens whose rows the target's cache holds.
        cache: the target's cache.
        context: the draft's context; None without a draft.
        stops: positions where a pass of a prefill ends, so that something can be kept there.
        skips: whether a prefill leaves rows out of the context that no draft layer would see at
            the prompt's end.
    """

    def __init__(self, target: Target, draft: DFlashDraft | None) -> None:
        self.target = target
        self.draft = draft
        self.ids: list[int] = []
        self.cache = target.new_cache()
        self.context: KVCache | None = draft.new_cache() if draft else None
        self.features: mx.array | None = None  # verified, not yet in the context
        self.stops: Sequence[int] = ()
        self.skips = True

    def prefill(
        self, prompt: Sequence[int], *, chunk: int, progress: Progress | None = None
    ) -> tuple[mx.array, int]:
        """Bring the caches to the end of `prompt`.

        Args:
            prompt: at least one id.
            chunk: tokens per pass, which bounds the memory of a pass.
            progress: called with tokens done and tokens to do.

        Returns:
            logits behind the last id [1, vocab]; how many ids were in the caches already.
        """
        for part in self.prefilling(prompt, chunk=chunk):
            if progress:
                progress(part.done, part.total)
        assert part.logits is not None
        return part.logits, part.cached

    def prefilling(self, prompt: Sequence[int], *, chunk: int) -> Iterator[Chunk]:
        """As `prefill`, a pass at a time; the session is consistent between passes."""
        kept = self.rewind(prompt)
        total = len(prompt) - kept
        for first, last in _spans(kept, len(prompt), chunk, self.stops):
            ids = list(prompt[first:last])
            state = self.cache.begin(first, len(ids), fixed=False)
            hidden, features, state = self.target.forward(mx.array([ids], mx.int32), first, state)
            self.cache.update(state)
            if features is not None:
                self._remember(features, first, len(prompt))
            mx.eval(self.cache.arrays(), self.context.arrays() if self.context else [])
            self.ids += ids
            self.cache.commit(len(ids))
            mx.clear_cache()
            done = first + len(ids) - kept
            logits = self.target.logits(hidden[:, -1:])[:, 0] if done == total else None
            del hidden, features, state  # the consumer may take its time
            yield Chunk(done, total, kept, logits)

    def forget(self) -> None:
        """Forget everything, the arrays too."""
        self.ids, self.features = [], None
        self.cache.clear()
        if self.context is not None:
            self.context.clear()

    def restore(self, chunk: int) -> None:
        """Compute the caches afresh: a pass that failed may have left them half written."""
        ids = self.ids
        self.forget()
        self.prefill(ids, chunk=chunk)

    def rewind(self, prompt: Sequence[int]) -> int:
        """Forget what is not a proper prefix of `prompt`; returns how many rows are left."""
        self.flush()
        length = min(_common(self.ids, prompt), len(prompt) - 1, self.cache.length)
        if self.context is not None:
            length = min(length, self.context.length)
            if self.context.trim(length) != length:
                length = 0
        if self.cache.trim(length) != length:
            length = 0
        if not self.target.ranks.same(length):  # where only some of them have sliding layers
            length = 0
        if length == 0:
            self.cache.trim(0)
            if self.context is not None:
                self.context.trim(0)
        del self.ids[length:]
        return length

    def commit(self, tokens: Sequence[int], features: mx.array | None) -> None:
        """Keep the rows of `tokens`, the anchor and what was accepted behind it.

        Args:
            tokens: their ids.
            features: [1, L >= len(tokens), ...] of the verified rows; None in plain decoding.
        """
        self.ids += tokens
        self.cache.commit(len(tokens))
        self.features = features

    def keep(self, tokens: Sequence[int], features: mx.array) -> None:
        """Keep the rows of `tokens`, whose features add up with others until a block is drafted.

        Args:
            tokens: the anchor, and what of a lookup draft was accepted behind it.
            features: [1, L >= len(tokens), ...] of the verified rows.
        """
        assert self.context is not None
        features = features[:, : len(tokens)]
        if self.features is not None:
            waiting = self.features[:, : self.cache.length - self.context.length]
            features = mx.concatenate([waiting, features], axis=1)
        self.commit(tokens, features)
        if features.shape[1] >= GATHERED:
            self.flush()

    def flush(self) -> None:
        """Add features that wait to the draft's context."""
        features, self.features = self.features, None
        if features is None or self.context is None:
            return
        rows = self.cache.length - self.context.length
        self._extend(features[:, :rows], self.context.length)

    def _remember(self, features: mx.array, first: int, total: int) -> None:
        """Add a chunk of the prompt to the context, without rows no block is going to see."""
        if self.context is None:
            return
        unseen = self._unseen(first, total)
        if unseen > 0:
            sinks = min(self.context.sinks - first, features.shape[1])
            if sinks > 0:
                self._extend(features[:, :sinks], first)
            if unseen >= features.shape[1]:
                return
            features, first = features[:, unseen:], first + unseen
        if first != self.context.length:  # all of the chunk before it may have been left out
            self.context.skip(first)
        self._extend(features, first)

    def _unseen(self, first: int, total: int) -> int:
        """Rows from position `first` on that no block sees behind a prompt of `total` tokens."""
        assert self.context is not None
        windows = [w for w in self.context.windows if w is not None]
        if not self.skips or len(windows) < len(self.context.windows):
            return 0
        # Somewhat more than is seen, so that a chat can step back a little.
        unseen = total - max(map(recent_of, windows)) - STEP - first
        return unseen if unseen > self.context.sinks - first else 0

    def _extend(self, features: mx.array, first: int) -> None:
        """Add rows from position `first` on, where the context ends."""
        assert self.context is not None and self.draft is not None
        rows = features.shape[1]
        self.context.reserve(rows)
        self.context.state = self.draft.extend(features, first, self.context.state)
        self.context.commit(rows)


def _spans(first: int, last: int, size: int, stops: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut a range into parts of at most `size` that end at the stops within it."""
    for end in sorted({stop for stop in stops if first < stop < last} | {last}):
        yield from ((at, min(at + size, end)) for at in range(first, end, size))
        first = end


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
