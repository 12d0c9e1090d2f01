"""Rounds of several texts in one pass: each text stays what it is alone, whatever is accepted."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import mlx.core as mx
import pytest

from dflash_mlx.config import FULL, SLIDING
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.drafts.dflash2 import DFlash2Draft
from dflash_mlx.engine.together import run_round
from dflash_mlx.generation import Course, rounds
from dflash_mlx.loading import Pair
from dflash_mlx.options import Options
from dflash_mlx.sampling import Sampling

from .families import (
    FAMILIES,
    VOCAB,
    WINDOW,
    draft_config,
    make_pair,
    prompt_of,
    random_draft,
)
from .test_dflash2 import EXTRA, selecting
from .test_lossless import truth

BATCHED = [family for family in FAMILIES if family != "glm_moe_dsa"]
HARD = ["llama-sliding", "qwen3_5", "gemma4-shared", "kimi_k25", "gpt_oss"]
SLIDES = {"layer_types": (SLIDING, FULL), "sliding_window": WINDOW}


@dataclass
class Script:
    """What a text really goes on with, and how many drafted tokens of the next block are right."""

    truth: mx.array
    right: int = 0


class Scripted(DFlashDraft):
    """Runs the real network, then proposes for each text what its script says, in this order."""

    def follow(self, scripts: Sequence[Script]) -> None:
        self._scripts = list(scripts)

    def forward(self, block: mx.array, start: Any, state: Any) -> tuple[mx.array, Any]:
        self._starts = start if isinstance(start, list) else [start]
        return super().forward(block, start, state)

    def wanted(self, sampling: Sampling) -> None:
        """All logits, of which the script makes others."""

    def shape_logits(self, logits: mx.array) -> mx.array:
        places = mx.arange(logits.shape[1])
        texts = []
        for script, start in zip(self._scripts, self._starts, strict=True):
            tokens = script.truth[start + 1 + places]
            tokens = mx.where(places == script.right, (tokens + 1) % VOCAB, tokens)
            texts.append(mx.where(mx.arange(VOCAB) == tokens[:, None], 20.0, 0.0))
        # The network's own output stays in the graph, so that its cache is written.
        return mx.stack(texts) + 0 * logits


class Text:
    """A greedy answer under way, and what it has to become."""

    def __init__(self, family: str, pair: Pair, length: int, count: int, **more: Any) -> None:
        prompt, self.expected = truth(family, length, count)
        self.script = Script(mx.array([*prompt, *self.expected, *[0] * 64], mx.int32))
        self.course = Course(pair, prompt, Options(**({"max_tokens": count} | more)))
        for _ in self.course.prefill():
            pass
        self.ids = list(self.course.first().tokens)

    def check(self) -> None:
        assert self.ids == self.expected[: len(self.ids)]


def play(pair: Pair, texts: Sequence[Text], width: int, right: Sequence[int]) -> None:
    """A round of some texts, in which so many drafted tokens of each are right."""
    assert isinstance(pair.draft, Scripted)
    for text, count in zip(texts, right, strict=True):
        text.script.right = count
    pair.draft.follow([text.script for text in texts])
    done = run_round(pair, [text.course for text in texts], width)
    for text, count, (result, commit) in zip(texts, right, done, strict=True):
        assert (result.drafted, result.accepted) == (width - 1, min(count, width - 1))
        text.ids += text.course.join(result, commit).tokens
        text.check()


def alone(pair: Pair, text: Text, right: int) -> None:
    assert isinstance(pair.draft, Scripted)
    text.script.right = right
    pair.draft.follow([text.script])
    text.ids += text.course.next().tokens
    text.check()


def pair_of(family: str, **config: Any) -> Pair:
    mx.random.seed(11)
    return make_pair(family, Scripted(draft_config(block_size=4, **config)).prepare())


@pytest.mark.parametrize("family", BATCHED)
def test_texts_join_and_leave(family: str) -> None:
    """Prompts on both sides of a window; all widths; rounds alone in between."""
    pair = pair_of(family, **SLIDES)
    a, b = Text(family, pair, 24, 24), Text(family, pair, 3, 24)
    play(pair, [a, b], 4, [2, 0])
    play(pair, [a, b], 4, [3, 3])
    c = Text(family, pair, 40, 24)
    play(pair, [c, a, b], 4, [1, 0, 3])
    play(pair, [c, a, b], 2, [1, 0, 1])
    play(pair, [b, c], 3, [0, 2])
    alone(pair, a, 2)
    play(pair, [a, b, c], 1, [0, 0, 0])
    play(pair, [a, b, c], 1, [0, 0, 0])
    play(pair, [a, b], 4, [3, 1])
    alone(pair, c, 1)
    play(pair, [a, b, c], 4, [3, 0, 2])
    assert sum(len(text.ids) for text in (a, b, c)) > 45


@pytest.mark.parametrize("family", HARD)
def test_every_pattern_of_acceptance(family: str) -> None:
    pair = pair_of(family, **SLIDES)
    texts = [Text(family, pair, length, 48) for length in (20, 7)]
    for right in product(range(4), repeat=2):
        play(pair, texts, 4, right)
    assert [len(text.ids) for text in texts] == [1 + 16 * 2.5] * 2


@pytest.mark.parametrize("family", ["llama-sliding", "gemma4-shared"])
def test_windows_that_have_moved_on(family: str) -> None:
    """Sliding layers of which each text holds other positions."""
    pair = pair_of(family, **SLIDES)
    texts = [Text(family, pair, length, 24) for length in (5, 540, 800)]
    for right in ([3, 0, 1], [1, 2, 3], [0, 3, 2], [2, 1, 0]):
        play(pair, texts, 4, right)
    bases = [max(text.course.session.cache.state["base"]) for text in texts]
    assert bases[0] == 0 < bases[1] < bases[2]


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_texts_without_a_draft(family: str) -> None:
    """They share passes with drafted ones where those leave the draft out."""
    pair = pair_of(family)
    drafted = Text(family, pair, 24, 24)
    plain = [Text(family, pair, length, 24, speculate=False) for length in (9, 3)]
    alone(pair, plain[0], 0)  # issues the next token ahead, which is then dropped
    for _ in range(3):
        play(pair, [drafted, *plain], 1, [0, 0, 0])
    alone(pair, plain[0], 0)
    play(pair, plain, 1, [0, 0])
    play(pair, [drafted], 4, [2])
    assert [len(text.ids) for text in (drafted, *plain)] == [7, 7, 5]


def test_the_end_of_a_text_in_a_shared_round() -> None:
    pair = pair_of("llama")
    a, b = Text("llama", pair, 24, 24, max_tokens=6), Text("llama", pair, 3, 24)
    play(pair, [a, b], 4, [3, 3])
    play(pair, [a, b], 4, [3, 3])
    assert a.ids == a.expected[:6]
    assert (a.course.ending, b.course.ending) == ("length", None)
    assert a.course.session.cache.length == 24 + 5


SAMPLED = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_k=9, repetition_penalty=1.3),
    Sampling(temperature=1.2, top_p=0.8, frequency_penalty=0.4, logit_bias=((3, 2.0),)),
    Sampling(presence_penalty=0.5),
]


def test_every_text_has_its_own_sampling_and_seed() -> None:
    draft = random_draft(draft_config(block_size=4))
    for chosen in (draft, selecting(VOCAB)):
        pair = make_pair("llama", chosen)
        wanted = [Options(max_tokens=9, sampling=s, seed=i) for i, s in enumerate(SAMPLED)]
        prompts = [prompt_of(5 + 7 * i) for i in range(4)]
        jobs = list(zip(prompts, wanted, strict=True))
        expected = [[t for r in rounds(pair, p, o) for t in r.tokens] for p, o in jobs]
        courses = [Course(pair, p, o) for p, o in jobs]
        ids = []
        for course in courses:
            list(course.prefill())
            ids.append(list(course.first().tokens))
        while going := [i for i, course in enumerate(courses) if course.ending is None]:
            done = run_round(pair, [courses[i] for i in going], chosen.config.block_size)
            for i, (result, commit) in zip(going, done, strict=True):
                ids[i] += courses[i].join(result, commit).tokens
        assert ids == expected


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_dflash2(family: str) -> None:
    """Its convolutions see one text's block at a time."""
    mx.random.seed(5)
    draft = DFlash2Draft(draft_config(block_size=4, dflash2=EXTRA)).prepare()
    pair = make_pair(family, draft)
    texts = [Text(family, pair, length, 24) for length in (24, 3, 40)]
    seen = [Text(family, pair, length, 24) for length in (24, 3, 40)]
    for _ in range(5):
        done = run_round(pair, [text.course for text in texts], 4)
        for text, other, (result, commit) in zip(texts, seen, done, strict=True):
            # The very blocks that it drafts alone, and so the same acceptance.
            lone = other.course.next()
            assert result[2] == lone.accepted
            assert text.course.join(result, commit).tokens == lone.tokens
            text.ids += lone.tokens
            text.check()
