"""What an engine is given, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError


@dataclass(frozen=True)
class EngineOptions:
    """How many requests an engine takes on.

    Attributes:
        places: requests decoded at a time.
        queue: requests that wait beyond these.
        memory: bytes for the caches of the requests that run; None takes what the machine has
            beside the weights.
        together: decode requests in the same passes where they can be; False has them take turns.
    """

    places: int = 4
    queue: int = 32
    memory: int | None = None
    together: bool = True

    def __post_init__(self) -> None:
        if self.places < 1:
            raise UsageError(f"places is {self.places}, expected 1 or more")
        if self.queue < 0:
            raise UsageError(f"queue is {self.queue}, expected 0 or more")
        if self.memory is not None and self.memory < 1:
            raise UsageError(f"memory is {self.memory} bytes, expected 1 or more")


@dataclass(frozen=True)
class Counters:
    """What an engine has done, and does.

    Attributes:
        running: requests that have a place: their prompt is read, or they are decoded.
        waiting: requests that have none yet.
        finished, cancelled, failed: requests that ended so.
        refused: requests for which there was no room.
        tokens: generated, the first of each answer included.
        rounds, drafted, accepted: as in `stats.Stats`, of all requests together.
        prefilled: prompt tokens computed.
        cached: prompt tokens that a prefix brought along.
        memory: bytes that the caches of the running requests may come to need.
        memory_limit: bytes they may need at most.
    """

    running: int = 0
    waiting: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    prefilled: int = 0
    cached: int = 0
    memory: int = 0
    memory_limit: int = 0
