"""What one conversation remembers between its turns, and in the files beside a saved one.

A session steps back by itself as far as its caches allow. The cache is for the others, whose
windows or recurrent states have moved on when a template rewrites an answer; plain attention
never needs it but to save and to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..loading import Pair
from ..session import Progress, Session
from .cache import PrefixCache, PrefixOptions


class Memory:
    """The session of a conversation, and a cache behind it.

    Args:
        pair: target, draft and tokenizer.
        options: of the cache.
    """

    def __init__(self, pair: Pair, options: PrefixOptions | None = None) -> None:
        self._cache = PrefixCache(pair, options or PrefixOptions())
        self._session = Session(pair.target, pair.draft)
        # Each has a part of the caches; the session alone steps back alike everywhere.
        self._several = pair.ranks.size > 1

    def recall(self, prompt: Sequence[int], stable: int) -> Session:
        """The session to go on with.

        Args:
            prompt: ids of the whole conversation.
            stable: how many of them the next prompt begins with, whatever the answer.
        """
        cache = self._cache
        if not prompt or self._several:
            return self._session
        if cache.marked:
            cache.put(self._session)
        known = cache.known(prompt)
        if known > self._session.rewind(prompt):
            self._session = cache.take(prompt, (stable,))
        if cache.marked:
            self._session.skips, self._session.stops = False, (stable,)
        else:
            cache.clear()  # the session has it all
        return self._session

    def watch(self, progress: Progress | None) -> Progress:
        """What a prefill of the session calls; it calls `progress`."""

        def keep(done: int, total: int) -> None:
            if not self._several and self._cache.marked:
                self._cache.checkpoint(self._session)
            if progress:
                progress(done, total)

        return keep

    def save(self, folder: Path) -> None:
        """Write what `load` goes on with.

        Raises:
            UsageError: the folder cannot be used.
        """
        if self._session.ids and not self._several:
            self._cache.put(self._session)
            self._cache.export(self._session.ids, folder)
            if not self._cache.marked:
                self._cache.clear()

    def load(self, folder: Path) -> None:
        """Take in what `save` has written, as far as it is there and belongs to the pair."""
        if folder.is_dir() and not self._several:
            try:
                self._cache.merge(folder)
            except UsageError:  # without it the next turn computes everything, which is right
                return
