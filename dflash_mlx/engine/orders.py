"""What rank 0's engine has the others do, where ranks share the target: all that takes passes.

An engine's decisions hang on clocks, on memory and on who comes when, so one engine makes them,
that of rank 0. Before it does anything that takes a pass, or that decides what one looks like (who
begins with which prefix, who leaves), it says so, and the others do the same (`following.py`).
One process is told nothing, and does not notice any of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import DFlashError, UsageError
from ..prefix.cache import PrefixCache
from ..ranks import LOST, Ranks
from .prefixes import Fresh, Prefixes
from .request import Request

SHORTEST, LONGEST = 0.001, 0.05  # seconds between two looks of ranks that rest


class Orders:
    """Gives the orders.

    Attributes:
        lost: whether the ranks are no longer at the same place; nothing more can be computed.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.lost = False

    @contextmanager
    def give(self, what: str, requests: Sequence[Request] = (), **how: Any) -> Iterator[None]:
        """Order what happens in this context; a `DFlashError` in it is one on every rank.

        Args:
            what: as `following` knows it.
            requests: for which.
            how: what else it takes, as JSON holds it.

        Raises:
            DFlashError: a pass has failed, perhaps here alone; then the ranks are lost.
        """
        if self._ranks.size == 1 or self.lost:
            yield
            return
        try:
            self._ranks.share({"do": what, "requests": [r.number for r in requests], **how})
            yield
        except DFlashError:
            raise
        except RuntimeError as error:
            self.lost = True
            line = (str(error).strip() or repr(error)).splitlines()[0]
            if line.startswith(LOST):
                raise
            raise DFlashError(
                f"a pass that several processes share has failed ({line}); start all of them again"
            ) from error
        except Exception:
            self.lost = True
            raise


def rest(ranks: Ranks, ready: Callable[[float], bool]) -> None:
    """Wait until rank 0 is ready, and see that all are there.

    MLX's ring asks its sockets again and again while it waits for another rank, which takes a core.
    So all ranks sleep equally long between exchanges, ever longer, and nobody waits in one.

    Args:
        ready: sleeps for so many seconds; on rank 0, less if it is ready before, and says if it is.
    """
    seconds = SHORTEST
    while not ranks.agree(ready(seconds)):
        seconds = min(2 * seconds, LONGEST)


def kept(prefixes: Prefixes, ranks: Ranks) -> int | None:
    """Bytes of the prefix cache that the others need, too; None for none.

    Raises:
        UsageError: they cannot have a store of that kind.
    """
    if isinstance(prefixes, PrefixCache):
        return prefixes.options.memory
    if ranks.size > 1 and not isinstance(prefixes, Fresh):
        raise UsageError("several processes keep prefixes in a PrefixCache, or none")
    return None
