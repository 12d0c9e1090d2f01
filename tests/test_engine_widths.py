"""Widths of batches: what was measured decides, and before that the pair's curve."""

from collections.abc import Callable

import pytest

from dflash_mlx.costs import CostCurve
from dflash_mlx.engine.sharing import Sharing
from dflash_mlx.engine.widths import FIRST_LOOK, TRIED, Widths
from dflash_mlx.generation import Course
from dflash_mlx.options import AUTO, Options
from dflash_mlx.sampling import Sampling

from .choosers import priced
from .families import draft_config, make_pair, prompt_of, random_draft


def run(
    widths: Widths, texts: int, seconds: Callable[[int], float], kept: int, rounds: int
) -> list[int]:
    """Chosen widths where a round takes `seconds(width)` and `kept` drafted tokens are right."""
    chosen = []
    for _ in range(rounds):
        width = widths.choose(texts, 100)
        chosen.append(width)
        widths.learn(width, [min(kept, width - 1)] * texts, seconds(width))
    return chosen


def test_every_width_is_tried_and_the_best_kept() -> None:
    chosen = run(Widths(8), 4, lambda width: 1 + width / 10, kept=2, rounds=40)
    assert chosen[: 3 * TRIED] == [8] * TRIED + [4] * TRIED + [1] * TRIED
    assert set(chosen[3 * TRIED :]) == {4}  # 3 tokens in 1.4 s


def test_wide_where_everything_is_kept_and_rows_cost_nothing() -> None:
    assert run(Widths(8), 4, lambda width: 1.0, kept=7, rounds=20)[-1] == 8


def test_plain_where_rows_cost_what_they_bring() -> None:
    """And the draft is looked at again, ever more rarely."""
    chosen = run(Widths(8), 4, lambda width: float(width), kept=1, rounds=FIRST_LOOK * 8)
    behind = chosen[3 * TRIED :]
    looks = [i for i, width in enumerate(behind) if width > 1]
    assert behind[:3] == [1, 1, 1]
    assert 2 <= len(looks) <= 4
    assert looks[1] - looks[0] > 1.5 * (looks[0] + 1)


def test_sizes_of_batches_are_told_apart() -> None:
    widths = Widths(8)
    few = run(widths, 2, lambda width: 1.0, kept=7, rounds=12)
    many = run(widths, 8, lambda width: float(width) ** 2, kept=7, rounds=12)
    assert (few[-1], many[-1]) == (8, 1)
    assert widths.choose(2, 100) == 8
    assert widths.choose(7, 100) == 1  # about 8


def test_a_curve_stands_in_for_measurements() -> None:
    curve = CostCurve((1, 8, 64), (1,), ((1.0, 1.1, 8.0),), (0.2,), 0.0)
    widths = Widths(8, curve)
    for _ in range(50):
        widths.learn(8, [7], 1.3)  # of one text: its time says nothing of four
    assert widths.choose(1, 100) == 8
    assert widths.choose(8, 100) == 8  # 64 rows in 8.2 s, 8 tokens of each text; plain 1.1 s
    for _ in range(200):
        widths.learn(8, [1], 1.3)
    assert widths.choose(8, 100) == 1
    assert widths.choose(1, 100) == 4


def test_an_outlier_changes_nothing() -> None:
    widths = Widths(8)
    run(widths, 4, lambda width: 1 + width / 10, kept=7, rounds=20)
    widths.learn(8, [7] * 4, 50.0)
    assert widths.choose(4, 100) == 8


def test_who_shares_a_pass() -> None:
    pair = make_pair("llama", random_draft(draft_config(block_size=8)))
    sampled = Sampling(temperature=1.0)
    wanted = {
        "greedy": Options(),
        "seeded": Options(sampling=sampled, seed=1),
        "drawn": Options(sampling=sampled),
        "narrow": Options(block=4),
        "auto": Options(block=AUTO),
        "plain": Options(speculate=False),
        "plain too": Options(speculate=False, block=AUTO),
    }
    courses = {name: Course(pair, prompt_of(4), options) for name, options in wanted.items()}
    names = {course: name for name, course in courses.items()}

    def groups(*chosen: str, together: bool = True) -> set[tuple[int, str]]:
        found = Sharing(priced(pair), together).groups([courses[name] for name in chosen])
        return {(width, " ".join(names[c] for c in members)) for members, width in found}

    assert groups(*wanted) == {
        (0, "auto"),
        (8, "greedy seeded drawn"),
        (4, "narrow"),
        (1, "plain plain too"),
    }
    assert {name for _, name in groups("greedy", "plain", together=False)} == {"greedy", "plain"}
    pair.target.batches = False
    assert len(groups("greedy", "drawn")) == 2


@pytest.mark.parametrize("seed", [None, 3])
def test_a_seed_keeps_the_width(seed: int | None) -> None:
    """What is drawn hangs on it; without a seed, and in greedy text, the batch may choose."""
    pair = priced(make_pair("llama", random_draft(draft_config(block_size=8))), per_token=9.0)
    options = Options(sampling=Sampling(temperature=1.0), seed=seed)
    courses = [Course(pair, prompt_of(4), o) for o in (Options(), options)]
    (group,) = Sharing(pair, True).groups(courses)
    assert group.width == (1 if seed is None else 8)
