"""The ranks that do not lead: they do what rank 0 does with a pair, until that ends.

Rank 0 runs a command as one process would. Where it comes to passes of the target, it says what
they are for (`Ranks.running`), and the others run the same code with the same arguments here.
They read nothing, print nothing and keep no text; what they choose does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .generation import rounds
from .loading import Pair
from .options import Options
from .ranks import Stopped
from .sampling import Sampling
from .session import Session
from .ties import read_twice


def follow(pair: Pair) -> None:
    """Take part in what rank 0 does inside `Ranks.lead`.

    Raises:
        DFlashError: another process has ended.
    """
    alone = replace(pair, draft=None)
    sessions: dict[int, Session] = {}
    with pair.ranks.meeting():
        while (order := pair.ranks.share())["kind"] != "end":
            for number in order["gone"]:
                sessions.pop(number, None)
            if order["kind"] == "answer":
                _answer(pair if order["drafts"] else alone, order, sessions)
            else:
                _read(pair, order)


def _answer(pair: Pair, order: Mapping[str, Any], sessions: dict[int, Session]) -> None:
    """A generation; in the session that stands for rank 0's, if it has one."""
    number, session = order["session"], None
    if number is not None:
        session = sessions.setdefault(number, Session(pair.target, pair.draft))
    try:
        for _ in rounds(pair, order["prompt"], _options(order["options"]), session):
            pass
    except Stopped:
        pass


def _read(pair: Pair, order: Mapping[str, Any]) -> None:
    """Readings of a text, to tell ties from errors."""
    sampling = _sampling(order["sampling"])
    read_twice(
        pair.target, order["prompt"], order["text"], order["width"], sampling, order["offsets"]
    )


def _options(fields: Mapping[str, Any]) -> Options:
    changed = {"sampling": _sampling(fields["sampling"]), "stop": tuple(fields["stop"])}
    return Options(**{**fields, **changed})


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    bias = tuple((token, value) for token, value in fields["logit_bias"])
    return Sampling(**{**fields, "logit_bias": bias})
