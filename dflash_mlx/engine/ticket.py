"""The consumer's end of a request."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterator

from ..generation import Response

log = logging.getLogger(__name__)


class Ticket:
    """A request that an engine took on: iterate for its responses, in any one thread.

    Args:
        wake: called when the request is cancelled.
        notify: called from the engine's thread whenever `get` has something new to say.
    """

    def __init__(self, wake: Callable[[], None], notify: Callable[[], None] | None = None) -> None:
        self._wake = wake
        self._notify = notify
        self._arrived: queue.SimpleQueue[Response | BaseException | None] = queue.SimpleQueue()
        self._over = False
        self.cancelled = False

    def __iter__(self) -> Iterator[Response]:
        return self

    def __next__(self) -> Response:
        response = self.get()
        if response is None:
            raise StopIteration
        return response

    def get(self, timeout: float | None = None) -> Response | None:
        """The next response; None once there are no more.

        Args:
            timeout: seconds to wait; None waits for ever.

        Raises:
            TimeoutError: nothing has come in that time; ask again.
            DFlashError, RuntimeError: what ended the request; raised once.
        """
        if self._over:
            return None
        try:
            item = self._arrived.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"no response within {timeout} s") from None
        self._over = not isinstance(item, Response)
        if isinstance(item, BaseException):
            raise item
        return item

    def cancel(self) -> None:
        """Give the place back, within a round. Responses made until then still come."""
        self.cancelled = True
        self._wake()

    def tell(self, item: Response | BaseException | None) -> None:
        """For the engine: the next response, what went wrong, or None at the end."""
        self._arrived.put(item)
        try:
            if self._notify:
                self._notify()
        except Exception:  # a consumer that is gone, its event loop closed, say
            log.exception("a consumer could not be notified")
