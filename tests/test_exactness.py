"""Sampled texts are tested against the target's distribution, and wrong ones are found."""

import mlx.core as mx
import pytest

from dflash_mlx import exactness, step
from dflash_mlx.exactness import FALSE_ALARMS, fit, sample
from dflash_mlx.loading import Pair
from dflash_mlx.options import Options
from dflash_mlx.sampling import Sampling

from .families import draft_config, make_pair, prompt_of, random_draft

PROMPT = prompt_of(20)
COUNT = 40


@pytest.mark.parametrize(
    ("statistic", "freedom", "expected"),
    [(5.991, 2, 0.05), (15.507, 8, 0.05), (26.296, 16, 0.05), (0, 16, 1), (39.252, 16, 0.001)],
)
def test_the_tail_of_chi_square(statistic: float, freedom: int, expected: float) -> None:
    """Against the usual tables."""
    assert exactness._tail(statistic, freedom) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("places", "bins"), [(0, 0), (23, 0), (24, 3), (47, 5), (999, 17)])
def test_bins(places: int, bins: int) -> None:
    found = fit([i / places for i in range(places)])
    assert (found.places, found.bins) == (places, bins)
    assert found.exact
    assert (found.p_value is None) == (bins == 0)


def test_places_that_are_not_uniform() -> None:
    assert not fit([i / 200 * 0.8 for i in range(200)]).exact


SAMPLINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_p=0.9),
    Sampling(temperature=1.0, top_k=5, presence_penalty=1.0),
]


def places(pair: Pair, sampling: Sampling, texts: int = 4) -> list[float]:
    done = [
        sample(pair, PROMPT, Options(max_tokens=COUNT, sampling=sampling, seed=i))
        for i in range(texts)
    ]
    assert all(text.same and text.tokens == COUNT for text in done)
    assert all(len(text.places) == COUNT - 1 for text in done)
    return [place for text in done for place in text.places]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_exact_sampling_passes(sampling: Sampling) -> None:
    pair = make_pair("llama", random_draft(draft_config(block_size=4)))
    found = fit(places(pair, sampling))
    assert found.bins == 17
    assert found.p_value is not None
    assert found.p_value > 0.001


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_wrong_sampling_is_seen(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every drafted token is kept, whatever the target thinks of it."""

    def credulous(drafted: mx.array, logq: mx.array, logp: mx.array, key: mx.array) -> mx.array:
        bonus = mx.random.categorical(logp[-1:], key=key)
        count = mx.array([drafted.shape[0]])
        return mx.concatenate([count, drafted, bonus]).astype(mx.int32)

    monkeypatch.setattr(step, "accept_sampled", credulous)
    pair = make_pair("llama", random_draft(draft_config(block_size=4)))
    found = fit(places(pair, sampling))
    assert found.p_value is not None
    assert found.p_value < FALSE_ALARMS
    assert not found.exact
