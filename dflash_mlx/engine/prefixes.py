"""Where sessions come from and go to, so that a prompt's known part need not be computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..loading import Pair
from ..session import Session


class Prefixes(Protocol):
    """A store of prefixes. Every method is called in the model thread, between passes."""

    def take(self, ids: Sequence[int], stable: Sequence[int] = ()) -> Session:
        """A session for a request with this prompt; it holds the longest stored prefix of `ids`.

        `stable` are places where the next prompt of the conversation may leave this one, if known.

        It belongs to the request until `put`. May be empty; must not share arrays that a pass
        writes to with another session.
        """

    def checkpoint(self, session: Session) -> None:
        """A chunk of the prompt was computed: recurrent state may be kept at this boundary."""

    def put(self, session: Session) -> None:
        """The request has ended, however it did; the session is empty where a pass had failed."""


class Fresh:
    """No store: every request starts with nothing."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    def take(self, ids: Sequence[int], stable: Sequence[int] = ()) -> Session:
        """A new session."""
        return Session(self._pair.target, self._pair.draft)

    def checkpoint(self, session: Session) -> None:
        """Keeps nothing."""

    def put(self, session: Session) -> None:
        """Keeps nothing."""
