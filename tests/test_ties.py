"""How far apart tied tokens may be, and what two readings of a text tell."""

import math
from typing import Any

import mlx.core as mx
import pytest

from dflash_mlx.generation import rounds
from dflash_mlx.options import Options
from dflash_mlx.sampling import Sampling
from dflash_mlx.ties import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    Position,
    judge,
    read_twice,
    tolerance,
)

from .families import MASK_ID, make_pair, plain_ids, prompt_of

PROMPT = prompt_of(20)
COUNT = 40


def position(noise: float = 0.0, best: float = 8.0, gap: float = 0.0) -> Position:
    return Position(1, best - gap, (2, best), (1, best - gap), (2, best), noise)


@pytest.mark.parametrize(
    ("gap", "verdict"),
    [(0.0, "identical"), (-0.1, "identical"), (0.2, "tie"), (0.21, "bug"), (math.nan, "bug")],
)
def test_what_a_gap_means(gap: float, verdict: str) -> None:
    assert judge(gap, 0.2) == verdict


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(mx.float32, FLOAT32), (mx.float16, FLOAT16), (mx.bfloat16, BFLOAT16)],
)
def test_how_far_apart_tied_tokens_may_be(dtype: mx.Dtype, precision: Any) -> None:
    step, limit = 8 * precision.step, 8 * precision.limit
    quiet = [position()] * 9
    assert tolerance(quiet, dtype) == 2 * step
    assert tolerance([*quiet, position(noise=3 * step)], dtype) == 6 * step
    assert tolerance([*quiet, position(noise=100.0)], dtype) == limit
    # Where the readings differ everywhere, it is not rounding that makes them differ.
    assert tolerance([position(noise=9 * precision.typical)] * 3, dtype) == 2 * step
    assert tolerance([position(noise=math.nan)] * 3, dtype) == 2 * step


@pytest.mark.parametrize("family", ["llama", "llama-sliding", "qwen3_5", "gpt_oss", "kimi_k25"])
@pytest.mark.parametrize("width", [3, 16])
def test_two_readings(family: str, width: int) -> None:
    text = plain_ids(family, PROMPT, COUNT)
    pair = make_pair(family, None)
    positions = read_twice(pair.target, PROMPT, text, width)
    assert [p.token for p in positions] == [p.best[0] for p in positions] == text
    assert [p.wide[0] for p in positions] == text
    assert all(p.gap == 0 < p.margin for p in positions)
    allowed = tolerance(positions, mx.float32)
    assert max(p.noise for p in positions) <= allowed < min(p.margin for p in positions)
    other = read_twice(pair.target, PROMPT, [*text[:9], MASK_ID], width)
    assert other[:9] == positions[:9]
    assert judge(other[9].gap, allowed) == "bug"


def test_readings_see_penalties() -> None:
    sampling = Sampling(presence_penalty=2.0, logit_bias=((5, 3.0),))
    pair = make_pair("llama", None)
    done = list(rounds(pair, PROMPT, Options(max_tokens=COUNT, sampling=sampling)))
    text = [token for round_ in done for token in round_.tokens]
    assert text != plain_ids("llama", PROMPT, COUNT)
    positions = read_twice(pair.target, PROMPT, text, 8, sampling)
    assert [p.best[0] for p in positions] == text
