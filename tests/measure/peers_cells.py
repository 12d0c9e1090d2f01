"""The cells of `peers.py`, the plain texts they are held against, and how one is judged."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

# By its folder, for `tests` as a package stands beside our own `dflash_mlx`.
sys.path.append(str(Path(__file__).parents[1]))

import reduced

LENGTHS = (1, 2, reduced.WINDOW + 3, 24, 70)
BLOCKS = (2, 5, 16)
# The draft's own guesses; none right; all right; 0, 1, .. block-1 right, one round after the other;
# all right and an end token inside a block.
BEHAVIOURS = ("random", "none", "all", "in turn", "stop")
MASK_ID = reduced.VOCAB - 1
TAPS = (0, 2)
# Of the two top logits, at every place of a plain text. Rounding stays a hundred times below.
MARGIN = 1e-4
# Different tokens in a plain text: where it repeats one, a wrong row or position does not show.
VARIETY = 16
LONGEST = 4096
MODULES = {"ours": "peers_ours", "dflash": "peers_dflash", "dflash-mlx": "peers_bstnxbt"}


class Absent(Exception):
    """The environment's mlx-lm cannot run the family."""


@dataclass(frozen=True)
class Cell:
    length: int
    behaviour: str
    block: int

    def __str__(self) -> str:
        return f"prompt {self.length}, {self.behaviour}, block {self.block}"


CELLS = tuple(Cell(*fields) for fields in product(LENGTHS, BEHAVIOURS, BLOCKS))


@dataclass
class Script:
    """What a draft proposes: the plain text, wrong at a place chosen by the anchor's position.

    Attributes:
        sequence: prompt and plain text.
        wrong: by position of the anchor, how many drafted tokens are right before a wrong one.
        lost: the first position whose anchor was another token than the sequence has there.
    """

    sequence: list[int]
    wrong: list[int]
    lost: int | None = None

    def drafted(self, position: int, anchor: int, count: int) -> list[int]:
        """The `count` tokens after the anchor, which stands at `position`."""
        if self.lost is None and self.token(position) != anchor:
            self.lost = position
        tokens = [self.token(position + 1 + place) for place in range(count)]
        if (place := self.wrong[position]) < count:
            tokens[place] = (tokens[place] + 1) % reduced.VOCAB
        return tokens

    def token(self, position: int) -> int:
        return self.sequence[position] if position < len(self.sequence) else 0


@dataclass(frozen=True)
class Task:
    """One generation: without a script the draft's own guesses are used."""

    prompt: list[int]
    block: int
    tokens: int
    stop: frozenset[int]
    script: Script | None


@dataclass(frozen=True)
class Decoded:
    """The ids in order, and the drafted tokens that each round accepted."""

    ids: list[int]
    accepted: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    cell: Cell
    outcome: str
    reason: str = ""
    rounds: int = 0
    accepted: int = 0
    off_script: bool = False


@dataclass(frozen=True)
class Text:
    """A prompt, its plain continuation and the distance of the two top logits at each place."""

    prompt: list[int]
    ids: list[int]
    margins: list[float]


def families() -> list[str]:
    return list(reduced.CONFIGS)


def prompt_of(length: int, seed: int) -> list[int]:
    key = mx.random.key(1000 * seed + length)
    return mx.random.randint(0, MASK_ID, (length,), key=key).tolist()


def greedy(model: Any, prompt: Sequence[int], count: int) -> Text:
    """Plain decoding by mlx-lm's own model and cache, one token at a time."""
    cache = make_prompt_cache(model)
    logits = model(mx.array([list(prompt)]), cache=cache)
    ids: list[int] = []
    margins: list[float] = []
    while len(ids) < count:
        second, first = mx.sort(logits[0, -1])[-2:].tolist()
        margins.append(first - second)
        ids.append(int(mx.argmax(logits[0, -1]).item()))
        logits = model(mx.array([ids[-1:]]), cache=cache)
    return Text(list(prompt), ids, margins)


def plain_text(model: Any, length: int, count: int) -> Text:
    """The first text of many tokens and no place where two all but tie; rounding decides there."""
    for seed in range(40):
        text = greedy(model, prompt_of(length, seed), count)
        if min(text.margins) > MARGIN and len(set(text.ids)) >= min(VARIETY, count // 4):
            return text
    raise RuntimeError(f"no prompt of {length} tokens leads to a text to test with")


def wrong_places(cell: Cell) -> list[int]:
    """By position of the anchor, as `Script` has it."""
    if cell.behaviour != "in turn":
        return [0 if cell.behaviour == "none" else cell.block] * LONGEST
    places, position, accepted = [0] * LONGEST, cell.length, 0
    while position < LONGEST:
        places[position] = accepted
        position, accepted = position + accepted + 1, (accepted + 1) % cell.block
    return places


def stop_place(ids: Sequence[int], block: int) -> int:
    """The last place inside a block, all accepted, where a token comes for the first time."""
    first = [place for place in range(1, len(ids)) if ids[place] not in ids[:place]]
    inside = [place for place in first if (place - 1) % block < block - 1]
    return max(inside or first, default=0)


def difference(ids: Sequence[int], expected: Sequence[int]) -> int | None:
    """The first place at which they differ, if they do."""
    for place, (got, right) in enumerate(zip(ids, expected, strict=False)):
        if got != right:
            return place
    return None if len(ids) == len(expected) else min(len(ids), len(expected))


def told(ids: Sequence[int], expected: Sequence[int], margins: Sequence[float], place: int) -> str:
    if place == len(expected):
        return f"{len(ids) - place} tokens too many"
    if place == len(ids):
        return f"ends after {place} of {len(expected)} tokens"
    margin = margins[place]
    return f"token {place} is {ids[place]}, not {expected[place]} (margin {margin:.2g})"


class Bench:
    """One family in one implementation.

    Raises:
        Absent: mlx-lm has no such model, or cannot run its config.
    """

    def __init__(self, implementation: str, family: str, tokens: int) -> None:
        self._family = family
        try:
            model = reduced.build(family)
            greedy(model, [1, 2, 3], 2)
        except Exception as error:
            raise Absent(one_line(error)) from error
        # Before the implementation is imported, so that nothing of it takes part.
        self._texts = {length: plain_text(model, length, tokens) for length in LENGTHS}
        module = import_module(MODULES[implementation])
        self._decode: Callable[[Any, str, Task], Decoded] = module.decode
        self._refusals: tuple[type[Exception], ...] = module.REFUSALS

    def run(self, cell: Cell) -> Result:
        text = self._texts[cell.length]
        expected, stop = text.ids, frozenset[int]()
        if cell.behaviour == "stop":
            expected = text.ids[: stop_place(text.ids, cell.block) + 1]
            stop = frozenset(expected[-1:])
        script = None
        if cell.behaviour != "random":
            script = Script(text.prompt + text.ids, wrong_places(cell))
        task = Task(text.prompt, cell.block, len(text.ids), stop, script)
        try:
            decoded = self._decode(reduced.build(self._family), self._family, task)
        except self._refusals as error:
            return Result(cell, "refused", one_line(error))
        except Exception as error:
            return Result(cell, "failed", one_line(error))
        return judged(cell, text, expected, script, decoded)


def judged(
    cell: Cell, text: Text, expected: list[int], script: Script | None, decoded: Decoded
) -> Result:
    place = difference(decoded.ids, expected)
    outcome = "passed" if place is None else "failed"
    reason = "" if place is None else told(decoded.ids, expected, text.margins, place)
    lost = math.inf if script is None or script.lost is None else script.lost
    right = len(text.prompt) + (len(expected) if place is None else place)
    rounds, accepted = len(decoded.accepted), sum(decoded.accepted)
    return Result(cell, outcome, reason, rounds, accepted, off_script=lost < right)


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:160]
