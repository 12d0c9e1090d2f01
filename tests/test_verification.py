"""Greedy texts that are the same, that part at a tie, and that show a bug."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest

from dflash_mlx import verification
from dflash_mlx.loading import Pair
from dflash_mlx.options import Options
from dflash_mlx.sampling import Sampling
from dflash_mlx.session import Session
from dflash_mlx.targets.base import Target
from dflash_mlx.verification import Comparison, compare

from .families import (
    MASK_ID,
    ScriptedDraft,
    build,
    draft_config,
    make_pair,
    plain_ids,
    prompt_of,
    random_draft,
)

PROMPT = prompt_of(20)
COUNT = 40


class Names:
    """A tokenizer of sorts for ids below 64."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"t{i}" for i in ids)


def scripted(family: str = "llama", accepted: int = 3) -> Pair:
    truth = PROMPT + plain_ids(family, PROMPT, 80)
    draft = ScriptedDraft(draft_config(), truth, lambda start: accepted)
    return make_pair(family, draft, tokenizer=Names())


def options(**more: Any) -> Options:
    return Options(max_tokens=COUNT, **more)


@pytest.mark.parametrize("accepted", [0, 3, 7])
def test_identical(accepted: int) -> None:
    found = compare(scripted(accepted=accepted), PROMPT, options())
    assert found == Comparison("identical", len(PROMPT), COUNT, found.tokens_per_round)
    assert found.tokens_per_round == pytest.approx(accepted + 1, abs=0.3)


def test_the_temperature_does_not_matter() -> None:
    sampling = Sampling(temperature=1.0)
    assert compare(scripted(), PROMPT, options(sampling=sampling, seed=1)).verdict == "identical"


class Nudged(Target):
    """Two tokens with the same head, of which passes of several rows prefer the second."""

    pair = (0, 0)
    by = 0.0

    def head(self, hidden: mx.array) -> mx.array:
        logits = super().head(hidden)
        if hidden.shape[1] == 1:
            return logits
        return logits + self.by * (mx.arange(logits.shape[-1]) == self.pair[1])


def nudged(by: float, alike: float = 1.0) -> Pair:
    """A pair whose speculative text has another token than plain decoding has.

    Args:
        by: what passes of several rows add to its logit.
        alike: its logit in plain decoding, relative to that of the token it displaces.
    """
    text = plain_ids("llama", PROMPT, COUNT)
    first = next(token for token in text if token != text[0] and token < MASK_ID - 1)
    second = next(token for token in range(first + 1, MASK_ID) if token not in text)
    model = build("llama")
    model.lm_head.weight[second] = alike * model.lm_head.weight[first]
    draft = random_draft(draft_config())
    pair = make_pair("llama", draft, tokenizer=Names())
    target = Nudged(model, draft.config.taps)
    target.pair, target.by = (first, second), by
    pair.target = target
    return pair


def test_a_tie() -> None:
    pair = nudged(1e-5)
    found = compare(pair, PROMPT, options())
    assert found.verdict == "tie"
    assert found.tolerance is not None
    assert found.noise is not None
    assert 1e-5 <= found.noise < found.tolerance < 1e-3
    (told,) = found.divergences
    assert told.verdict == "tie"
    assert told.plain is not None
    assert told.speculative is not None
    assert (told.plain.id, told.speculative.id) == pair.target.pair  # type: ignore[attr-defined]
    assert {c.id for c in told.top} == set(pair.target.pair)  # type: ignore[attr-defined]
    assert told.margin == told.gap == 0
    before = plain_ids("llama", PROMPT, told.position + 1)
    assert told.plain.id == before[-1]
    assert told.behind == Names().decode(before[:-1][-12:])


def test_a_difference_that_rounding_does_not_make() -> None:
    """Passes of a block that compute something else excuse nothing."""
    found = compare(nudged(0.5, alike=0.98), PROMPT, options())
    assert found.verdict == "bug"
    (told,) = found.divergences
    assert told.verdict == "bug"
    assert told.gap is not None
    assert found.tolerance is not None
    assert told.gap > found.tolerance


def sloppy(monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    """Rollback keeps one rejected row too many, from a certain length on."""
    commit = Session.commit

    def wrong(self: Session, tokens: list[int], features: object) -> None:
        late = features is not None and len(self.ids) >= after
        commit(self, [*tokens, tokens[-1]] if late else tokens, features)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "commit", wrong)


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_a_wrong_rollback(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sloppy(monkeypatch)
    found = compare(scripted(family), PROMPT, options())
    assert found.verdict == "bug"
    assert found.divergences[0].verdict == "bug"


def test_a_bug_behind_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(nudged(1e-5), PROMPT, options()).divergences[0].position
    sloppy(monkeypatch, after=len(PROMPT) + first + 8)
    found = compare(nudged(1e-5), PROMPT, options())
    assert found.verdict == "bug"
    tie, bug = found.divergences
    assert (tie.verdict, bug.verdict) == ("tie", "bug")
    assert tie.position == first < bug.position
    assert found.ties >= 0


@pytest.mark.parametrize("cut", ["speculative", "plain"])
def test_a_text_that_ends_too_soon(cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = verification._decode

    def short(pair: Pair, prompt: Any, options: Options) -> Any:
        ids, stats = decode(pair, prompt, options)
        return (ids[:9] if options.speculate == (cut == "speculative") else ids), stats

    monkeypatch.setattr(verification, "_decode", short)
    found = compare(scripted(), PROMPT, options())
    assert found.verdict == "bug"
    (told,) = found.divergences
    assert told.position == 9
    assert (told.speculative is None) == (cut == "speculative")
    assert (told.plain is None) == (cut == "plain")
