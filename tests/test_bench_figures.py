"""Figures, computed by hand."""

import json
from dataclasses import replace

import pytest

from dflash_mlx.bench.figures import all_figures, by_position, drafts, figures, histogram, speedups
from dflash_mlx.bench.records import Answer, Drafting

from .bench_records import answer, rounds, turn


def test_acceptance_of_hand_made_rounds() -> None:
    found = drafts([rounds(0, 3, 1), rounds(2)])
    assert found is not None
    assert (found.rounds, found.drafted, found.accepted) == (4, 12, 6)
    assert found.tau_mean == pytest.approx(((1 + 4 + 2) / 3 + 3) / 2)
    assert found.tau_pooled == 10 / 4
    assert found.accepted_share == 0.5
    assert found.by_position == (3 / 4, 2 / 4, 1 / 4)
    assert found.histogram == (1, 1, 1, 1)


def test_positions_count_the_rounds_that_drafted_them() -> None:
    mixed = (*rounds(1, drafted=1), *rounds(0, drafted=1), *rounds(3, 1, drafted=3))
    assert by_position(mixed) == (3 / 4, 1 / 2, 1 / 2)


def test_a_round_in_which_the_text_ended_says_nothing_about_places() -> None:
    cut = Drafting(drafted=3, accepted=1, kept=1)
    assert by_position((*rounds(2), cut)) == (1.0, 1.0, 0.0)
    assert histogram((*rounds(2), cut)) == (0, 1, 1)
    found = drafts([(*rounds(2), cut)])
    assert found is not None
    assert found.tau_pooled == 4 / 2


def test_nothing_drafted() -> None:
    assert drafts([(), ()]) is None
    assert by_position(()) == ()
    assert histogram(()) == ()


def test_speed_ups_are_paired_by_prompt_and_repeat() -> None:
    base = [
        answer("a", "plain", turn(decode_s=2.0)),
        answer("a", "plain", turn(decode_s=4.0), repeat=1),
        answer("b", "plain", turn(decode_s=1.0)),
        answer("c", "plain", turn(tokens=1, decode_s=0.0)),
    ]
    new = [
        answer("a", "dflash 4", turn(decode_s=1.0)),
        answer("a", "dflash 4", turn(decode_s=1.0), repeat=1),
        answer("b", "dflash 4", turn(decode_s=2.0)),
        answer("c", "dflash 4", turn(tokens=1, decode_s=0.0)),
    ]
    assert speedups(new, base) == {"a": 3.0, "b": 0.5}


def test_two_turns_are_one_speed() -> None:
    talk = answer("a", "plain", turn(tokens=11, decode_s=1.0), turn(tokens=31, decode_s=4.0))
    assert talk.decode_tok_s == 40 / 5
    assert talk.prefill_tok_s == 40 / 1


def differing(verdict: str) -> list[Answer]:
    base = [answer(name, "plain") for name in "abcd"]
    new = [answer(name, "dflash 4", turn(decode_s=0.5), verdict="identical") for name in "abc"]
    odd = answer("d", "dflash 4", turn(decode_s=0.1), verdict=verdict, difference="token 3: ...")
    return [*base, *new, odd]


def test_a_tie_keeps_the_speed_up() -> None:
    _, found = all_figures(differing("tie"))
    assert found.same is not None
    assert (found.same.identical, found.same.tie, found.same.bug) == (3, 1, 0)
    assert found.same.example == "d, token 3: ..."
    assert found.speedup is not None
    assert found.speedup.value == 2.0


def test_a_text_that_differs_has_no_speed_up() -> None:
    _, found = all_figures(differing("bug"))
    assert found.differs
    assert found.speedup is None
    assert found.without_loops is None
    assert len(found.speedups) == 4


def test_accuracy_is_of_the_first_pass() -> None:
    base = [answer(n, "plain", correct=n != "c") for n in "abc"]
    new = [answer(n, "dflash 4", correct=n != "a") for n in "abc"]
    again = [answer(n, "dflash 4", correct=False, repeat=1) for n in "abc"]
    _, found = all_figures([*base, *new, *again])
    assert found.accuracy is not None
    assert (found.accuracy.value, found.accuracy.n) == (2 / 3, 3)
    assert found.paired is not None
    assert found.paired[:4] == (1, 1, 1, 0)


def test_loops_are_counted_and_left_out_beside() -> None:
    loop = turn(ids=(5,) * 60, decode_s=0.01)
    base = [answer(n, "plain") for n in "abcd"]
    new = [answer(n, "dflash 4", turn(decode_s=0.5)) for n in "abc"]
    _, found = all_figures([*base, *new, answer("d", "dflash 4", loop)])
    assert found.degenerate == 1
    assert found.without_loops is not None
    assert found.without_loops.n == 3
    assert found.without_loops.value == 2.0


def test_failed_answers_are_counted_alone() -> None:
    bad = replace(answer("b", "endpoint"), turns=(), failed="refused")
    found = figures([answer("a", "endpoint"), bad], [answer("a", "endpoint"), bad])
    assert (found.prompts, found.answers, found.failed) == (1, 1, 1)
    assert found.speedup is None


def test_figures_are_json() -> None:
    for found in all_figures(differing("tie")):
        record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert record["decode_tok_s"].keys() == {"value", "low", "high", "n"}


def test_answers_survive_json() -> None:
    before = answer("a", "dflash 4", turn(rounds=rounds(1, 2)), verdict="identical", correct=True)
    after = Answer.from_dict(json.loads(json.dumps(before.as_dict())))
    assert after == before
    assert after.rounds[1].whole
