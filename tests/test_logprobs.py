"""Log-probabilities: the same in every way of decoding, and mlx-lm's own."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_logits_processors

from dflash_mlx import decode
from dflash_mlx.errors import UsageError
from dflash_mlx.generation import rounds, stream_generate
from dflash_mlx.loading import Pair
from dflash_mlx.logprobs import TokenLogprob, pack, unpack
from dflash_mlx.options import AUTO, Options
from dflash_mlx.sampling import Sampling

from .choosers import Script, scripted
from .families import ScriptedDraft, draft_config, language_model, make_pair, plain_ids, prompt_of
from .tiny import options as letter_options
from .tiny import tiny_pair

PROMPT = prompt_of(20)
COUNT = 30
PENALISED = Sampling(repetition_penalty=1.3, logit_bias=((5, 2.0), (9, -3.0)))
WARM = Sampling(temperature=0.8, top_p=0.9, top_k=20)


def accepting(accepted: int, family: str = "llama") -> Pair:
    truth = PROMPT + plain_ids(family, PROMPT, COUNT + 10)
    return make_pair(family, ScriptedDraft(draft_config(), truth, lambda _: accepted))


def reported(pair: Pair, logprobs: int | None = 4, **options: Any) -> list[TokenLogprob]:
    """Those of `COUNT` tokens, and that they belong to these."""
    chosen = Options(max_tokens=COUNT, logprobs=logprobs, seed=7, **options)
    done = list(rounds(pair, PROMPT, chosen))
    assert [t.token for r in done for t in r.logprobs] == [t for r in done for t in r.tokens]
    return [one for round_ in done for one in round_.logprobs]


def by_mlx_lm(ids: Sequence[int], sampling: Sampling) -> list[mx.array]:
    """What mlx-lm reports for each of these tokens: log-probabilities of all tokens."""
    forced = iter(ids)
    processors = make_logits_processors(
        dict(sampling.logit_bias) or None,
        sampling.repetition_penalty if sampling.repetition_penalty != 1 else None,
    )
    steps = generate_step(
        mx.array(PROMPT),
        language_model("llama"),
        max_tokens=len(ids),
        sampler=lambda _: mx.array([next(forced, 0)]),
        logits_processors=processors,
    )
    return [logprobs for _, logprobs in steps]


def check(found: Sequence[TokenLogprob], expected: Sequence[mx.array]) -> None:
    for one, row in zip(found, expected, strict=True):
        assert one.logprob == pytest.approx(row[one.token].item(), abs=2e-5)
        ids = [i for i, _ in one.top]
        assert len(set(ids)) == 4
        best = mx.sort(row)[::-1][:4].tolist()
        assert [value for _, value in one.top] == pytest.approx(best, abs=2e-5)
        assert [row[i].item() for i in ids] == pytest.approx(best, abs=2e-5)


@pytest.mark.parametrize("sampling", [Sampling(), PENALISED, WARM], ids=["greedy", "bias", "warm"])
def test_they_are_mlx_lms(sampling: Sampling) -> None:
    for speculate in (False, True):
        found = reported(accepting(3), sampling=sampling, speculate=speculate)
        check(found, by_mlx_lm([one.token for one in found], sampling))


@pytest.mark.parametrize("accepted", range(8))
def test_plain_and_dflash_report_the_same(accepted: int) -> None:
    plain = reported(accepting(accepted), speculate=False)
    same(reported(accepting(accepted)), plain)


def test_widths_of_their_own_report_the_same() -> None:
    pair = accepting(5)
    with scripted(Script([3, 8, 0, 1, 5])):
        found = reported(pair, block=AUTO)
    same(found, reported(pair, speculate=False))


def same(found: Sequence[TokenLogprob], expected: Sequence[TokenLogprob]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=2e-5)
        values = [value for _, value in other.top]
        assert [value for _, value in one.top] == pytest.approx(values, abs=2e-5)


def test_none_and_no_alternatives() -> None:
    assert reported(accepting(2), 0) != []
    assert {one.top for one in reported(accepting(2), 0)} == {()}
    done = list(rounds(accepting(2), PROMPT, Options(max_tokens=9)))
    assert {round_.logprobs for round_ in done} == {()}


@pytest.mark.parametrize("wrong", [-1, 21])
def test_too_many_are_refused(wrong: int) -> None:
    with pytest.raises(UsageError, match=f"logprobs is {wrong}, expected 0 to 20"):
        Options(logprobs=wrong)


@pytest.mark.parametrize("speculate", [True, False])
def test_a_round_is_read_once(speculate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = decode.read
    monkeypatch.setattr(decode, "read", lambda packed: reads.append(packed.size) or read(packed))
    options = Options(max_tokens=10, logprobs=5, speculate=speculate)
    done = list(rounds(accepting(2), PROMPT, options))
    assert len(reads) == len(done)


def test_a_stop_text_cuts_them_too() -> None:
    pair = tiny_pair()
    text = "".join(r.text for r in stream_generate(pair, "abc", letter_options()))
    for end in range(1, len(text), 3):
        options = letter_options(stop=(text[end],), logprobs=2)
        for response in stream_generate(pair, "abc", options):
            assert [one.token for one in response.logprobs] == list(response.tokens)


def test_what_is_packed_is_unpacked() -> None:
    logits = mx.array([[0.0, 3.0, 1.0, 2.0], [1.0, -mx.inf, 0.0, -mx.inf]])
    found = unpack(pack(logits, mx.array([2, 0]), 3).tolist(), 2, [2, 0])
    first, second = mx.softmax(logits, axis=-1).log().tolist()
    assert [i for i, _ in found[0].top] == [1, 3, 2]
    assert found[0].logprob == pytest.approx(first[2])
    assert [v for _, v in found[0].top] == pytest.approx([first[1], first[3], first[2]])
    # What is impossible is no alternative.
    assert found[1].top == ((0, pytest.approx(second[0])), (2, pytest.approx(second[2])))
    assert unpack([], 2, [1, 2]) == ()
