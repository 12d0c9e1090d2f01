"""The measurement itself: every prompt by every arm in turn, in one process.

Clocks, temperatures and other programs drift over minutes, so arms are compared on the same prompt
within seconds, and who comes first rotates. Each arm is warmed up before anything counts. What two
greedy arms said is compared as soon as both are there, between the timed parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import UsageError
from ..loading import Pair
from ..options import Options
from ..sampling import Sampling
from ..verification import Comparison, explain
from .data.problems import Problem, Problems
from .data.scoring import score
from .records import Answer, Arm, Block, Key, Turn, Verdict
from .talk import Talk, Talks

WARM_TOKENS = 64
JUDGED_WIDTH = 8  # rows of the second reading where no block size is fixed


@dataclass(frozen=True)
class Plan:
    """How every prompt is answered.

    Attributes:
        sampling: greedy unless it has a temperature.
        lookup: drafts copied from the text, see `Options`; never where there is no draft.
        seed: of the sampled answers; each gets one of its own, the same in every arm.
        repeat: passes over all prompts.
        think: whether a model that can think should; None leaves it to its template.
        run_code: whether answers may be run to score them.
    """

    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    lookup: Literal["auto", "on", "off"] = "auto"
    seed: int = 0
    repeat: int = 1
    think: bool | None = None
    run_code: bool = False

    def options(self, number: int = 0) -> Options:
        """What the answer of that number is generated with."""
        seed = (self.seed + number) % 2**32
        return Options(
            max_tokens=self.max_tokens, sampling=self.sampling, lookup=self.lookup, seed=seed
        )


@dataclass(frozen=True)
class Said:
    """A conversation, and what the model got before each of its answers."""

    turns: tuple[Turn, ...]
    prompts: tuple[list[int], ...]
    failed: str | None = None


def arms_for(pair: Pair, baselines: Sequence[str], blocks: Sequence[Block]) -> tuple[Arm, ...]:
    """The arms of a pair: what is compared with first, then DFlash with every block.

    Args:
        baselines: plain, mlx-lm or both.
        blocks: none for the draft's own.
    """
    if pair.ranks.size > 1 and "mlx-lm" in baselines:
        raise UsageError("--baseline mlx-lm runs in one process; several compare with plain")
    arms = [Arm("mlx-lm" if name == "mlx-lm" else "plain") for name in baselines]
    if pair.draft is not None:
        own: tuple[Block, ...] = (pair.draft.config.block_size,)
        arms += [Arm("dflash", block) for block in blocks or own]
    return tuple(arms)


def run(
    pair: Pair,
    name: str,
    arms: Sequence[Arm],
    problems: Problems,
    plan: Plan,
    done: Collection[Key] = (),
) -> Iterator[tuple[Answer, ...]]:
    """Measure one pair on one set.

    Args:
        name: what answers call the pair.
        arms: the first is the baseline.
        done: what has been answered already.

    Yields:
        the answers of all arms to one prompt, in the order of `arms`.

    Raises:
        DFlashError: an option does not fit the pair.
    """
    asked = [
        (Key(name, problems.dataset, problem.id, repeat), problem)
        for repeat in range(plan.repeat)
        for problem in problems.items
    ]
    left = [(number, *each) for number, each in enumerate(asked) if each[0] not in done]
    talks = Talks(pair, plan.think)
    if left:
        warm_up(talks, arms, problems.items[0], plan)
    for number, key, problem in left:
        said = ask_all(talks, arms, problem, plan, number)
        base = said[arms[0]]
        yield tuple(_answer(pair, plan, key, problem, arm, said[arm], base) for arm in arms)


def warm_up(talks: Talks, arms: Sequence[Arm], problem: Problem, plan: Plan) -> None:
    """Let every arm answer a little, uncounted: the first use of a pass compiles it."""
    options = replace(plan.options(), max_tokens=min(WARM_TOKENS, plan.max_tokens))
    for arm in arms:
        talks.open(arm, options).ask(problem.turns[0])


def ask_all(
    talks: Talks, arms: Sequence[Arm], problem: Problem, plan: Plan, number: int
) -> dict[Arm, Said]:
    """Every arm's conversation, the order rotated by the prompt's number."""
    first = number % len(arms)
    said = {}
    for arm in (*arms[first:], *arms[:first]):
        said[arm] = _converse(talks.open(arm, plan.options(number)), problem)
    return said


def judge(
    pair: Pair, sampling: Sampling, block: Block | None, base: Said, found: Said
) -> tuple[Verdict, str | None] | None:
    """Whether a greedy conversation is the baseline's; None where there is nothing to compare.

    A turn behind one that differs had another prompt, and is not compared.
    """
    verdict: Verdict | None = None
    width = block if isinstance(block, int) else JUDGED_WIDTH
    for index, (old, new) in enumerate(zip(base.turns, found.turns, strict=False)):
        if base.prompts[index] != found.prompts[index]:
            break
        compared = explain(pair, base.prompts[index], list(old.ids), list(new.ids), sampling, width)
        verdict = compared.verdict
        if verdict != "identical":
            return verdict, describe(compared, index)
    return None if verdict is None else (verdict, None)


def describe(compared: Comparison, turn: int) -> str:
    """Where two texts part, in one line."""
    first = compared.divergences[-1]
    plain, other = (c.text if c else "the end" for c in (first.plain, first.speculative))
    where = f"token {first.position + 1}" + (f" of turn {turn + 1}" if turn else "")
    behind = "" if first.gap is None else f", {first.gap:.3g} behind the best"
    return f"{where}: {other!r} for {plain!r}{behind}, tied up to {compared.tolerance:.3g}"


def _converse(talk: Talk, problem: Problem) -> Said:
    turns: list[Turn] = []
    prompts: list[list[int]] = []
    try:
        for text in problem.turns:
            prompts.append(talk.prompt(text))
            turns.append(talk.ask(text))
    except UsageError as error:  # a conversation that outgrows the context
        return Said((), (), str(error))
    return Said(tuple(turns), tuple(prompts))


def _answer(
    pair: Pair, plan: Plan, key: Key, problem: Problem, arm: Arm, said: Said, base: Said
) -> Answer:
    judged = correct = None
    if said is not base and plan.sampling.greedy:
        judged = judge(pair, plan.sampling, arm.block, base, said)
    if said.turns:
        correct = score(key.dataset, problem, said.turns[-1].text, run_code=plan.run_code)
    verdict, difference = judged or (None, None)
    return Answer(
        *key,
        arm=arm.name,
        turns=said.turns,
        verdict=verdict,
        difference=difference,
        correct=correct,
        failed=said.failed,
    )
