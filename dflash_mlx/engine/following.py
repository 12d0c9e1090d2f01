"""The engine of a rank that does not lead: it does with the model what rank 0's engine orders.

Requests here have no consumer. Their tokens are counted and their ends are seen by rank 0 alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..errors import DFlashError
from ..loading import Pair
from ..options import Options
from ..prefix.cache import PrefixCache, PrefixOptions
from .orders import rest
from .prefixes import Fresh, Prefixes
from .request import Request
from .ticket import Ticket
from .together import share


def follow(pair: Pair, engine: Mapping[str, Any]) -> None:
    """Take part in all that an engine does, until it closes.

    Args:
        engine: what `Engine` tells of itself.
    """
    pair = replace(pair, max_context=engine["max_context"])
    kept = engine["kept"]
    prefixes = Fresh(pair) if kept is None else PrefixCache(pair, PrefixOptions(kept))
    follower = _Follower(pair, prefixes)
    while (order := pair.ranks.share())["do"] != "end":
        with suppress(DFlashError):  # rank 0 has it, too, and ends the request
            follower.do(order)


def _asleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


class _Follower:
    def __init__(self, pair: Pair, prefixes: Prefixes) -> None:
        self._pair, self._prefixes = pair, prefixes
        self._requests: dict[int, Request] = {}

    def do(self, order: Mapping[str, Any]) -> None:
        """Obey."""
        requests = [self._requests[n] for n in order["requests"] if n in self._requests]
        match order["do"]:
            case "begin":
                self._pair.ranks.together(lambda: self._begin(order))
            case "read":
                requests[0].read(self._prefixes, order["chunk"])
            case "round":
                requests[0].round()
            case "share":
                share(self._pair, [request.at_work for request in requests], order["width"])
            case "rest":
                rest(self._pair.ranks, _asleep)
            case "leave":
                self._leave(order)

    def _begin(self, order: Mapping[str, Any]) -> None:
        (number,) = order["requests"]
        options = Options.from_dict(order["options"])
        request = Request(order["prompt"], options, Ticket(lambda: None), stable=order["stable"])
        self._requests[number] = request
        request.begin(self._pair, self._prefixes)

    def _leave(self, order: Mapping[str, Any]) -> None:
        for number in order["requests"]:
            request = self._requests.pop(number, None)
            if request is not None:
                request.leave(self._prefixes, DFlashError() if order["failed"] else None)
