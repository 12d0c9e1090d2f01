"""Processes that watch each other: what a goodbye is, and what is none."""

import queue
import socket
import threading
from typing import Any

from dflash_mlx import watch as module
from dflash_mlx.watch import Watch

SOON = 30.0


class Talking:
    """Stands for a rank of two: what rank 0 shares, and numbers of both, go through queues."""

    size = 2

    def __init__(self, rank: int, shared: queue.Queue[Any], counted: queue.Queue[int]) -> None:
        self.rank, self.leads = rank, rank == 0
        self._shared, self._counted = shared, counted

    def share(self, value: Any = None) -> Any:
        if not self.leads:
            return self._shared.get(timeout=SOON)
        self._shared.put(value)
        return value

    def each(self, number: int) -> list[int]:
        if not self.leads:
            self._counted.put(number)
            return [0, number]
        return [number, self._counted.get(timeout=SOON)]


def two() -> tuple[list[Watch], "queue.Queue[tuple[int, int]]"]:
    """Watches of two ranks; who saw whom go."""
    shared: queue.Queue[Any] = queue.Queue()
    counted: queue.Queue[int] = queue.Queue()
    seen: queue.Queue[tuple[int, int]] = queue.Queue()
    made: dict[int, Watch] = {}

    def make(rank: int) -> None:
        ranks: Any = Talking(rank, shared, counted)
        made[rank] = Watch(ranks, lambda other: seen.put((rank, other)))

    threads = [threading.Thread(target=make, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    return [made[0], made[1]], seen


def test_one_that_goes_without_a_word_is_missed() -> None:
    (_, follower), seen = two()
    follower._others[0].shutdown(socket.SHUT_RDWR)
    # It sees its own connection close, too.
    assert {seen.get(timeout=SOON), seen.get(timeout=SOON)} == {(0, 1), (1, 0)}


def test_one_that_says_goodbye_is_not() -> None:
    (leader, follower), seen = two()
    leader.leave()
    follower.leave()
    for thread in threading.enumerate():
        if thread.name.startswith("watch"):
            thread.join(SOON)
    assert seen.empty()


def test_a_stranger_is_not_let_in() -> None:
    """It knows no token; the rank that does comes behind it."""
    watch: Any = Watch.__new__(Watch)
    watch._others = {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        at = listener.getsockname()
        with socket.create_connection(at) as stranger, socket.create_connection(at) as own:
            stranger.sendall(b"x" * 16 + bytes([1]))
            own.sendall(b"t" * 16 + bytes([2]))
            watch._accept(listener, b"t" * 16, 1)
    assert list(watch._others) == [2]
    watch._others[2].close()


def test_a_machine_knows_itself_by_some_name() -> None:
    assert "127.0.0.1" in module._names()
