"""Which bits for which part of a draft: the search, apart from what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from .recipe import GROUPS, DraftRecipe

WIDTHS = (8, 6, 5, 4, 3)
TRIES = 8  # combinations that are measured, at most
# Fewer bits of a group are not tried where this many times the allowed loss is passed already.
HOPELESS = 3.0

Measure = Callable[[DraftRecipe], float]
Size = Callable[[DraftRecipe], int]


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        recipe: what was quantised.
        size: bytes of the draft.
        tau: tokens per round.
        loss: how much lower that is than with the draft as it came, as a share; may be negative.
    """

    recipe: DraftRecipe
    size: int
    tau: float
    loss: float


@dataclass(frozen=True)
class Choice:
    """What was measured, in order, and what came of it.

    Attributes:
        base: the draft as it came.
        parts: each group alone.
        tried: combinations, smallest first, up to the one that was taken.
    """

    base: Row
    parts: tuple[Row, ...]
    tried: tuple[Row, ...]
    chosen: Row


def choose(plain: DraftRecipe, measure: Measure, size: Size, allowed: float) -> Choice:
    """The smallest draft whose tokens per round are at most `allowed` below the plain one's.

    Every group is quantised alone first, in fewer and fewer bits. What combinations lose is
    predicted as the sum of that, and measured from the smallest one on that could pass.

    Args:
        plain: without bits; group size and dtype are kept.
    """
    tau = measure(plain)

    def row(recipe: DraftRecipe) -> Row:
        found = measure(recipe)
        return Row(recipe, size(recipe), found, 1 - found / tau)

    base = Row(plain, size(plain), tau, 0.0)
    losses: dict[tuple[str, int | None], float] = {(group, None): 0.0 for group in GROUPS}
    parts = []
    for group in GROUPS:
        for bits in WIDTHS:
            parts.append(row(_with(plain, {group: bits})))
            losses[group, bits] = max(0.0, parts[-1].loss)
            if parts[-1].loss > HOPELESS * max(allowed, 0.01):
                break
    tried = []
    for recipe in _hopeful(plain, losses, size, allowed):
        tried.append(row(recipe))
        if tried[-1].loss <= allowed:
            return Choice(base, tuple(parts), tuple(tried), tried[-1])
        if len(tried) == TRIES:
            break
    fits = [r for r in parts if r.loss <= allowed]
    return Choice(base, tuple(parts), tuple(tried), min([base, *fits], key=lambda r: r.size))


def _hopeful(
    plain: DraftRecipe,
    losses: Mapping[tuple[str, int | None], float],
    size: Size,
    allowed: float,
) -> Iterator[DraftRecipe]:
    """Combinations that may lose at most `allowed`, smallest first; single groups are left out."""
    widths = [[bits for group, bits in losses if group == wanted] for wanted in GROUPS]
    fitting = []
    for combination in product(*widths):
        bits = dict(zip(GROUPS, combination, strict=True))
        if sum(b is not None for b in combination) < 2:
            continue
        if sum(losses[part] for part in bits.items()) <= allowed:
            fitting.append(_with(plain, bits))
    yield from sorted(fitting, key=size)


def _with(plain: DraftRecipe, bits: Mapping[str, int | None]) -> DraftRecipe:
    return DraftRecipe(
        fc=bits.get("fc"),
        attention=bits.get("attention"),
        mlp=bits.get("mlp"),
        group_size=plain.group_size,
        dtype=plain.dtype,
    )
