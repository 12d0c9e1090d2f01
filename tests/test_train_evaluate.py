"""Tokens per round: of a draft by decoding, of lookup and n-grams on the same texts."""

from pathlib import Path

import numpy as np
import pytest

from dflash_mlx.options import Options
from dflash_mlx.train.baselines import NGrams, lookup, tokens_per_round
from dflash_mlx.train.curve import chart, write_curve
from dflash_mlx.train.evaluate import Count, Evaluation, Judge, Prompt
from dflash_mlx.train.packing import Document
from dflash_mlx.train.state import append

from .families import ScriptedDraft, draft_config, make_pair, plain_ids, prompt_of


def text(ids: list[int], answer: int = 0) -> Document:
    return Document(np.array(ids, np.int32), answer)


def test_the_longest_known_sequence_decides() -> None:
    documents = [text([1, 2, 3, 4]), text([1, 2, 3, 4]), text([9, 2, 3, 5]), text([7, 3, 6])]
    table = NGrams(documents)
    assert table([1, 2, 3], 1) == [4]
    assert table([9, 2, 3], 1) == [5]
    assert table([8, 2, 3], 1) == [4]  # twice of three times
    assert table([7, 3], 2) == [6]
    assert table([4], 3) == []
    assert table([1], 5) == [2, 3, 4]


def test_prompts_are_not_counted() -> None:
    table = NGrams([text([1, 2, 3, 4, 5], answer=3)])
    assert table([1], 1) == [] and table([1, 2], 1) == []
    assert table([3], 2) == [4, 5]
    assert NGrams([])([1], 1) == []


def test_lookup_takes_the_last_place() -> None:
    assert lookup([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3], 2) == [8, 1]
    assert lookup([5, 2, 3, 9, 4, 3], 2) == [9, 4]
    assert lookup([1, 2, 3], 4) == []


def test_rounds_of_a_text_are_counted_as_decoding_does() -> None:
    ids = list(range(10, 20))

    def two_right(so_far: object, count: int) -> list[int]:
        place = len(so_far)  # type: ignore[arg-type]
        return [10 + place, 11 + place, 0, 0][:count]

    # Of 7 tokens behind the first, rounds bring 3, 3 and 1.
    assert tokens_per_round(text(ids, 2), two_right, 5) == (7, 3)
    assert tokens_per_round(text(ids, 2), two_right, 2) == (7, 4)
    assert tokens_per_round(text(ids, 2), lambda *_: [], 5) == (7, 7)


def test_a_draft_is_judged_by_what_it_decodes() -> None:
    prompts = [prompt_of(6, seed) for seed in (1, 2)]
    truth = plain_ids("llama", prompts[0], 25)
    draft = ScriptedDraft(draft_config(), [*prompts[0], *truth], lambda _: 3)
    pair = make_pair("llama", draft)
    known = text([*prompts[0], *truth], 6)
    judge = Judge(
        [Prompt(tuple(prompts[0]), "easy"), Prompt(tuple(prompts[1]), "other")],
        [known],
        Options(max_tokens=25),
    )
    done: list[int] = []
    found = judge(pair, done.append)
    assert done == [1, 2]
    assert found.draft["easy"] == Count(24, 6)
    assert found.ngrams["easy"] == Count(24, 3)
    assert found.draft["other"].ratio < 2
    assert found.lookup["easy"].tokens == 24
    figures = found.as_dict()
    assert figures["by_kind"]["easy"]["draft"] == 4.0
    total = found.draft["easy"] + found.draft["other"]
    assert found.tokens_per_round == pytest.approx(total.tokens / total.rounds)


def test_the_curve_holds_every_figure(tmp_path: Path) -> None:
    for step in range(1, 6):
        line = {"loss": 6.0 / step, "tokens_per_round": 1 + step / 10, "accuracy": [0.5, 0.25]}
        append(tmp_path, {"step": step, **line})
    evaluation = Evaluation({"": Count(30, 20)}, {"": Count(30, 25)}, {"": Count(30, 24)})
    append(tmp_path, {"step": 5, "evaluation": evaluation.as_dict()})
    write_curve(tmp_path, tmp_path / "curve.html")
    page = (tmp_path / "curve.html").read_text()
    for part in ("draft 1.5<", "prompt lookup 1.2<", "n-gram table 1.25<", "place 2 0.25<"):
        assert part in page
    assert page.count("<svg") == 4 and "http" not in page.replace("http://www.w3.org/2000", "")


def test_a_curve_of_nothing_is_drawn() -> None:
    assert chart([]) == "<p>nothing yet</p>"
