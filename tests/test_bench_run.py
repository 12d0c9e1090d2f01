"""Running a benchmark on the tiny pair: order, equality, conversations, times, parts of a round."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from dflash_mlx.bench import run as bench_run
from dflash_mlx.bench.data.problems import Problem, Problems
from dflash_mlx.bench.figures import drafts
from dflash_mlx.bench.records import Answer, Arm, Key
from dflash_mlx.bench.run import Plan, Said, arms_for, judge, run
from dflash_mlx.bench.split import TimedDecoder, split
from dflash_mlx.bench.talk import Talks, stock_sampler
from dflash_mlx.errors import UnsupportedError
from dflash_mlx.generation import rounds
from dflash_mlx.loading import Pair
from dflash_mlx.options import Options
from dflash_mlx.sampling import Sampling
from dflash_mlx.targets.base import Target

from .bench_records import turn
from .choosers import Script, scripted
from .test_verification import COUNT, PROMPT, nudged
from .tiny import options, tiny_pair

LETTERS = options().sampling  # answers in letters, which encode to the same tokens
PLAN = Plan(max_tokens=12)


def problems(*turns: tuple[str, ...]) -> Problems:
    items = tuple(Problem(str(i), texts) for i, texts in enumerate(turns))
    return Problems("made", items, "this test", False, "fingerprint")


THREE = problems(("hello",), ("one two",), ("three four five",))


@pytest.fixture(scope="module")
def pair() -> Pair:
    return tiny_pair()


def measured(pair: Pair, plan: Plan = PLAN, asked: Problems = THREE) -> list[Answer]:
    arms = arms_for(pair, ["plain", "mlx-lm"], [4, 6])
    return [a for answers in run(pair, "tiny", arms, asked, plan) for a in answers]


def test_arms(pair: Pair) -> None:
    named = [arm.name for arm in arms_for(pair, ["mlx-lm", "plain"], [])]
    assert named == ["mlx-lm", "plain", "dflash 4"]
    assert arms_for(tiny_pair(draft=False), ["plain"], [8]) == (Arm("plain"),)


def test_every_arm_says_the_same(pair: Pair) -> None:
    answers = measured(pair)
    assert [a.arm for a in answers[:4]] == ["plain", "mlx-lm", "dflash 4", "dflash 6"]
    for first in range(0, 12, 4):
        base, *others = answers[first : first + 4]
        assert base.verdict is None
        assert {a.verdict for a in others} == {"identical"}
        assert {a.turns[0].ids for a in others} == {base.turns[0].ids}
        assert {a.turns[0].text for a in others} == {base.turns[0].text}
        assert {a.turns[0].finish_reason for a in others} == {base.turns[0].finish_reason}


def test_the_order_rotates_and_everything_is_warm(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = Talks.open

    def spy(self: Talks, arm: Arm, how: Options) -> Any:
        opened.append(arm.name)
        return real(self, arm, how)

    monkeypatch.setattr(Talks, "open", spy)
    arms = (Arm("plain"), Arm("dflash", 4))
    list(run(pair, "tiny", arms, THREE, PLAN))
    plain, dflash = "plain", "dflash 4"
    assert opened == [plain, dflash, plain, dflash, dflash, plain, plain, dflash]


def test_what_is_done_is_left_out(pair: Pair) -> None:
    plan = replace(PLAN, repeat=2)
    done = {Key("tiny", "made", "0", 0), Key("tiny", "made", "2", 1)}
    arms = arms_for(pair, ["plain"], [])
    left = [answers[0].key for answers in run(pair, "tiny", arms, THREE, plan, done)]
    assert [(key.problem, key.repeat) for key in left] == [
        ("1", 0),
        ("2", 0),
        ("0", 1),
        ("1", 1),
    ]


def test_two_turns_are_one_conversation(pair: Pair) -> None:
    plan = replace(PLAN, sampling=LETTERS)
    talks = Talks(pair, None)
    for arm in (Arm("plain"), Arm("dflash", 4)):
        talk = talks.open(arm, plan.options())
        first = talk.ask("hello")
        prompt = talk.prompt("and then?")
        second = talk.ask("and then?")
        assert prompt[: first.prompt_tokens + 12] == [*talks_prompt(pair, "hello"), *first.ids]
        assert second.prompt_tokens == len(prompt)
        assert second.cached_tokens == first.prompt_tokens + len(first.ids) - 1


def talks_prompt(pair: Pair, text: str) -> list[int]:
    return Talks(pair, None).open(Arm("plain"), PLAN.options()).prompt(text)


def test_mlx_lm_keeps_its_cache_between_turns(pair: Pair) -> None:
    talks = Talks(pair, None)
    texts = ("hello", "and then?", "no")
    said = []
    for arm in (Arm("mlx-lm"), Arm("plain")):
        talk = talks.open(arm, PLAN.options())
        said.append([talk.ask(text) for text in texts])
    stock, ours = said
    assert [t.ids for t in stock] == [t.ids for t in ours]
    assert stock[0].cached_tokens == 0
    assert stock[1].cached_tokens >= stock[0].prompt_tokens


def test_mlx_lm_has_no_penalties() -> None:
    with pytest.raises(UnsupportedError, match="takes no penalties"):
        stock_sampler(Sampling(repetition_penalty=1.1))


def test_sampled_answers_are_not_compared(pair: Pair) -> None:
    plan = replace(PLAN, sampling=Sampling(temperature=1.0), seed=3)
    answers = measured(pair, plan)
    assert {a.verdict for a in answers} == {None}
    again = measured(pair, plan)
    assert [a.turns[0].ids for a in again] == [a.turns[0].ids for a in answers]


def test_seeds_of_answers_differ(pair: Pair) -> None:
    plan = replace(PLAN, sampling=Sampling(temperature=1.0), repeat=2)
    answers = [a for a in measured(pair, plan) if a.arm == "plain" and a.problem == "0"]
    assert answers[0].turns[0].ids != answers[1].turns[0].ids


def test_a_conversation_that_outgrows_the_context_is_a_failed_one() -> None:
    small = tiny_pair(max_context=60)
    answers = measured(small, asked=problems(("hello",), ("x" * 80,)))
    assert [bool(a.failed) for a in answers] == [False] * 4 + [True] * 4
    assert "context holds 60" in str(answers[-1].failed)


def test_answers_are_scored(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def right(dataset: str, problem: Problem, said: str, *, run_code: bool) -> bool:
        assert (dataset, run_code) == ("made", True)
        return problem.id == "1"

    monkeypatch.setattr(bench_run, "score", right)
    answers = measured(pair, replace(PLAN, run_code=True))
    assert [a.correct for a in answers[::4]] == [False, True, False]


@pytest.mark.parametrize(("by", "alike", "verdict"), [(1e-5, 1.0, "tie"), (0.5, 0.98, "bug")])
def test_texts_that_differ_are_judged(by: float, alike: float, verdict: str) -> None:
    odd = nudged(by, alike)
    texts = [
        [t for r in rounds(odd, PROMPT, Options(COUNT, speculate=s)) for t in r.tokens]
        for s in (False, True)
    ]
    plain, found = (Said((turn(ids=tuple(ids)),), (list(PROMPT),)) for ids in texts)
    judged = judge(odd, Sampling(), 8, plain, found)
    assert judged is not None
    assert judged[0] == verdict
    assert judged[1] is not None
    assert judged[1].startswith("token ")
    assert judge(odd, Sampling(), 8, plain, plain) == ("identical", None)


def test_turns_behind_another_prompt_are_not_compared(pair: Pair) -> None:
    base = Said((turn(), turn()), ([1, 2], [1, 2, 3]))
    other = Said((turn(), turn(tokens=5)), ([1, 2], [1, 2, 4]))
    assert judge(pair, Sampling(), 4, base, other) == ("identical", None)
    assert judge(pair, Sampling(), 4, base, Said((), (), "failed")) is None


def test_tau_is_that_of_the_raw_rounds(pair: Pair) -> None:
    prompt = talks_prompt(pair, "hello")
    raw = [r for r in rounds(pair, prompt, Options(12, block=4)) if r.drafted]
    said = Talks(pair, None).open(Arm("dflash", 4), PLAN.options()).ask("hello")
    assert [tuple(r) for r in said.rounds] == [(r.drafted, r.accepted, len(r.tokens)) for r in raw]
    found = drafts([said.rounds])
    assert found is not None
    assert found.tau_pooled == sum(len(r.tokens) for r in raw) / len(raw)


def test_tau_counts_rounds_that_verify_nothing(pair: Pair) -> None:
    """With block auto some rounds are plain decoding: they are rounds all the same."""
    with scripted(Script([3, 0, 1])):
        (plain, found), *_ = run(pair, "p", arms_for(pair, ["plain"], ["auto"]), THREE, PLAN)
    assert (found.arm, found.verdict) == ("dflash auto", "identical")
    (turn,) = found.turns
    assert sum(r.kept for r in turn.rounds) == turn.tokens - 1
    assert {0, 2} <= {r.drafted for r in turn.rounds}
    assert plain.turns[0].rounds == ()


def test_times_agree_with_a_clock_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass takes 20 ms at least, so that lower bounds are known as well as upper ones."""
    slow = tiny_pair()
    forward = Target.forward

    def sleeping(self: Target, *args: Any) -> Any:
        mx.eval(args[0])
        time.sleep(0.02)
        return forward(self, *args)

    monkeypatch.setattr(Target, "forward", sleeping)
    for arm in (Arm("plain"), Arm("dflash", 4)):
        talk = Talks(slow, None).open(arm, PLAN.options())
        began = time.perf_counter()
        said = talk.ask("hello")
        outside = time.perf_counter() - began
        passes = len(said.rounds) or said.tokens - 1
        assert said.ttft_s >= 0.02
        assert said.decode_s >= 0.02 * (passes - 1)  # plain decoding issues one ahead
        assert said.ttft_s + said.decode_s <= outside


def test_the_parts_of_a_round_add_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: Iterator[float] = iter(range(10**6))
    monkeypatch.setattr("dflash_mlx.bench.split.time.perf_counter", lambda: float(next(ticks)))
    prompt = talks_prompt(pair, "hello")
    found = split(pair, [prompt, prompt], Options(12, block=4))
    raw = [r for r in rounds(pair, prompt, Options(12, block=4)) if r.drafted]
    assert found.rounds == 2 * len(raw)
    # A clock that ticks when it is read: draft, verify and accept wait once a round, commit twice,
    # and every wait is one tick inside and one outside.
    assert (found.draft, found.verify, found.accept, found.commit) == (1, 1, 1, 2)
    assert found.host == pytest.approx(5 + 2 / found.rounds)


def test_a_pass_in_parts_says_the_same(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    commit = TimedDecoder.commit

    def spy(self: TimedDecoder, anchor: int, tokens: Any) -> None:
        seen.extend(tokens)
        commit(self, anchor, tokens)

    monkeypatch.setattr(TimedDecoder, "commit", spy)
    prompt = talks_prompt(pair, "hello")
    split(pair, [prompt], Options(12, block=4))
    expected = [t for r in rounds(pair, prompt, Options(12, block=4)) for t in r.tokens][1:]
    assert seen[-len(expected) :] == expected
