"""Sampling means what it means in mlx-lm, row by row."""

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import sample_utils

from dflash_mlx.errors import UsageError
from dflash_mlx.sampling import Sampling, log_distribution, process

VOCAB = 50
SETTINGS = [
    {"temperature": 0.7},
    {"temperature": 1.5, "top_p": 0.9},
    {"temperature": 0.5, "top_p": 0.4},
    {"temperature": 1.0, "top_k": 7},
    {"temperature": 1.0, "top_k": 500},
    {"temperature": 1.3, "min_p": 0.1},
    {"temperature": 0.9, "top_p": 0.8, "min_p": 0.05, "top_k": 5},
]


def logits_of(rows: int, seed: int = 0) -> mx.array:
    return 3 * mx.random.normal((rows, VOCAB), key=mx.random.key(seed))


def mlx_lm_distribution(logits: mx.array, setting: dict[str, Any]) -> mx.array:
    """The chain of `make_sampler`, up to the draw."""
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    if 0 < setting.get("top_p", 1) < 1:
        logprobs = sample_utils.apply_top_p(logprobs, setting["top_p"])
    if setting.get("min_p"):
        logprobs = sample_utils.apply_min_p(logprobs, setting["min_p"])
    if 0 < setting.get("top_k", 0) < VOCAB:
        logprobs = sample_utils.apply_top_k(logprobs, setting["top_k"])
    return mx.softmax(logprobs / setting["temperature"], axis=-1)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_distribution_is_mlx_lms(setting: dict[str, Any]) -> None:
    logits = logits_of(6)
    ours = mx.exp(log_distribution(logits, Sampling(**setting)))
    for row in range(6):
        theirs = mlx_lm_distribution(logits[row : row + 1], setting)
        assert mx.allclose(ours[row], theirs[0], atol=1e-6).item()
        assert ((ours[row] > 0) == (theirs[0] > 0)).all().item()


PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.7},
    {"frequency_penalty": 0.4},
    {"logit_bias": ((3, 2.5), (7, -100.0))},
    {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "logit_bias": ((1, 1.0),),
    },
]


@pytest.mark.parametrize("setting", PENALTIES, ids=str)
@pytest.mark.parametrize("length", [1, 5, 30])
def test_penalties_are_mlx_lms(setting: dict[str, Any], length: int) -> None:
    """With histories shorter and longer than what the penalties look at, with repeats."""
    sampling = Sampling(penalty_context=20, **setting)
    tokens = mx.random.randint(0, 12, (length,), key=mx.random.key(length))
    recent = tokens.tolist()[-20:]
    size = sampling.history
    history = mx.array([[-1] * (size - len(recent)) + recent]) if size else None
    logits = logits_of(1)
    ours = process(logits, history, sampling)
    theirs = mx.array(logits)
    arguments = {**setting, "logit_bias": dict(setting.get("logit_bias", ()))}
    for processor in sample_utils.make_logits_processors(**arguments):
        theirs = processor(tokens, theirs)
    assert mx.allclose(ours, theirs, atol=1e-5).item()


def test_rows_have_histories_of_their_own() -> None:
    sampling = Sampling(presence_penalty=2.0, penalty_context=2)
    logits = mx.zeros((3, 5))
    out = process(logits, mx.array([[-1, 0], [0, 1], [1, 1]]), sampling)
    assert out.tolist() == [[-2, 0, 0, 0, 0], [-2, -2, 0, 0, 0], [0, -2, 0, 0, 0]]


def test_half_precision_is_processed_in_float32() -> None:
    out = process(mx.zeros((1, 5), mx.bfloat16), None, Sampling(logit_bias=((0, 1e-4),)))
    assert out.dtype == mx.float32
    assert out[0, 0].item() == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1}, "temperature is -1, expected at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 1.5}, "top_p is 1.5, expected 0 to 1"),
        ({"top_p": 0}, "top_p is 0, expected more than 0"),
        ({"top_k": -3}, "top_k is -3"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"penalty_context": 0}, "penalty_context is 0"),
    ],
)
def test_nonsense_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**setting)


def test_bias_outside_the_vocabulary() -> None:
    with pytest.raises(UsageError, match="token 99; ids go from 0 to 49"):
        Sampling(logit_bias=((99, 1.0),)).check_vocabulary(50)
