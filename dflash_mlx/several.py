"""The ranks that do not lead: they do what rank 0 does with a pair, until that ends.

Rank 0 runs a command as one process would. Where it comes to passes of the target, it says what
they are for (`Ranks.running`), and the others run the same code with the same arguments here.
They read nothing, print nothing and keep no text; what they choose does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .engine import following
from .engine.memory import available, sizes_of
from .errors import DFlashError
from .generation import rounds
from .loading import Pair
from .options import Options
from .ranks import Stopped
from .sampling import Sampling
from .session import Session
from .ties import read_twice
from .watch import Watch


def follow(pair: Pair) -> None:
    """Take part in what rank 0 does inside `Ranks.lead`.

    Where another process ends meanwhile, this one does, too, if no error says so before.

    Raises:
        DFlashError: another process has ended.
    """
    alone = replace(pair, draft=None)
    sessions: dict[int, Session] = {}
    with pair.ranks.meeting():
        watch = Watch(pair.ranks)
        while (order := pair.ranks.share())["kind"] != "end":
            for number in order["gone"]:
                sessions.pop(number, None)
            match order["kind"]:
                case "answer":
                    _answer(pair if order["drafts"] else alone, order, sessions)
                case "read":
                    _read(pair, order)
                case "sizes":
                    sizes_of(pair)
                case "room":
                    available(pair)
                case "engine":
                    following.follow(pair, order)
        watch.leave()


def _answer(pair: Pair, order: Mapping[str, Any], sessions: dict[int, Session]) -> None:
    """A generation; in the session that stands for rank 0's, if it has one."""
    try:
        options = pair.ranks.together(lambda: Options.from_dict(order["options"]))
    except DFlashError:
        return  # rank 0 has it, too
    number, session = order["session"], None
    if number is not None:
        session = sessions.setdefault(number, Session(pair.target, pair.draft))
    try:
        for _ in rounds(pair, order["prompt"], options, session):
            pass
    except Stopped:
        pass


def _read(pair: Pair, order: Mapping[str, Any]) -> None:
    """Readings of a text, to tell ties from errors."""
    sampling = Sampling.from_dict(order["sampling"])
    read_twice(
        pair.target, order["prompt"], order["text"], order["width"], sampling, order["offsets"]
    )
