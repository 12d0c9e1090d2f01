"""One of several processes that serve requests with reduced models; see test_several_engine.py."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dflash_mlx.blas import prefer_openblas

prefer_openblas()  # before anything imports mlx

import mlx.core as mx  # noqa: E402

from dflash_mlx import sharding  # noqa: E402
from dflash_mlx.drafts.dflash import DFlashDraft  # noqa: E402
from dflash_mlx.engine import Engine, EngineOptions, Ticket  # noqa: E402
from dflash_mlx.engine.memory import sizes_of  # noqa: E402
from dflash_mlx.errors import DFlashError  # noqa: E402
from dflash_mlx.guide import Guide  # noqa: E402
from dflash_mlx.loading import Pair  # noqa: E402
from dflash_mlx.options import AUTO, Options  # noqa: E402
from dflash_mlx.prefix.cache import PrefixCache, PrefixOptions  # noqa: E402
from dflash_mlx.ranks import ALONE, Ranks, join  # noqa: E402
from dflash_mlx.sampling import Sampling  # noqa: E402
from dflash_mlx.several import follow  # noqa: E402
from dflash_mlx.targets import target_for  # noqa: E402

from .choosers import priced  # noqa: E402
from .engines import alone, ids_of, told  # noqa: E402
from .families import VOCAB, draft_config, plain_ids, prompt_of  # noqa: E402
from .guides import EOS, tokenizer  # noqa: E402
from .reduced import CONFIGS, build  # noqa: E402

CASES = {
    "tensor": ("llama-sliding", "qwen3_5", "kimi_k25"),
    "pipeline": ("qwen3_next", "gpt_oss"),
}
LENGTHS, TOKENS = (5, 30, 55, 80, 110), 12
SEEDED = Sampling(temperature=0.8, top_k=20, repetition_penalty=1.1)
LETTERS = Guide.regex("[a-z]{5,9}")


class Knowing(DFlashDraft):
    """Proposes what greedy texts go on with, a number of tokens that hangs on the place.

    It tells the texts by where they are, so no two of them may reach the same positions.
    """

    def __init__(self, family: str) -> None:
        super().__init__(draft_config(block_size=4))
        truth = [0] * 400
        for length in LENGTHS:
            text = plain_ids(family, prompt_of(length), TOKENS)
            truth[length : length + len(text)] = text
        self._truth, self._starts = mx.array(truth, mx.int32), [0]
        self.prepare()

    def forward(self, block: mx.array, start: Any, state: Any) -> tuple[mx.array, Any]:
        self._starts = start if isinstance(start, list) else [start]
        return super().forward(block, start, state)

    def wanted(self, sampling: Sampling) -> None:
        """All logits, of which the truth makes others."""

    def shape_logits(self, logits: mx.array) -> mx.array:
        places = mx.arange(logits.shape[1])
        texts = []
        for start in self._starts:
            tokens = self._truth[start + 1 + places]
            tokens = mx.where(places == start % 4, (tokens + 1) % VOCAB, tokens)
            texts.append(mx.where(mx.arange(VOCAB) == tokens[:, None], 20.0, 0.0))
        return mx.stack(texts) + 0 * logits


def pair_of(family: str, ranks: Ranks) -> Pair:
    """This rank's part of a reduced model, and a draft that is right now and then."""
    model, draft = build(family), Knowing(family)
    sharding.check(CONFIGS[family].get("text_config", CONFIGS[family]), family, ranks)
    sharding.cut(model, family, ranks)
    target = target_for(model, draft.config.taps, ranks)
    return priced(Pair(target, draft, tokenizer(), frozenset([EOS]), 4096, family, "knowing"))


def wanted() -> list[Options]:
    """Of the requests; the last one never ends, unless it is cancelled."""
    return [
        Options(TOKENS, prefill_chunk=16),
        Options(TOKENS - 3, prefill_chunk=16, logprobs=1),
        Options(TOKENS, SEEDED, seed=5, prefill_chunk=16),
        Options(TOKENS, speculate=False, prefill_chunk=32),
        Options(300, Sampling(logit_bias=((EOS, -100.0),)), prefill_chunk=64),
    ]


def own_ways() -> list[Options]:
    """Of requests that share no rounds, and one that ends before its first."""
    return [
        Options(TOKENS, block=AUTO),
        Options(TOKENS, lookup="on"),
        Options(20, guide=LETTERS),
        Options(20, SEEDED, seed=7, guide=LETTERS),
        Options(20, guide=LETTERS, speculate=False),
        Options(0),
    ]


def served(pair: Pair, memory: int) -> dict[str, Any]:
    """What comes of many requests at once, then of their next turns."""
    prompts = [prompt_of(length) for length in LENGTHS]
    prefixes = PrefixCache(pair, PrefixOptions(memory))
    with Engine(pair, EngineOptions(places=3), prefixes) as engine:
        jobs = list(zip(prompts, wanted(), strict=True))
        leaving, *tickets = [engine.submit(*job) for job in (jobs[-1], *jobs[:-1])]
        cut = [*_first(leaving)]
        leaving.cancel()
        cut += ids_of(told(leaving))
        found = [told(ticket) for ticket in tickets]
        answers = [ids_of(one) for one in found]
        more = [engine.submit(prompts[0], options) for options in own_ways()]
        others = [ids_of(told(ticket)) for ticket in more]
        turns = [[*p, *a, 7, 8, 9] for p, a in zip(prompts, answers, strict=False)]
        later = [told(engine.submit(turn, Options(4, prefill_chunk=16))) for turn in turns]
        counters = engine.counters
    return {
        "answers": answers,
        "top": [len(known.top) for one in found[1] for known in one.logprobs],
        "others": others,
        "later": [ids_of(one) for one in later],
        "cached": [one[-1].stats.cached_tokens for one in later],
        "cut": cut,
        "ended": [counters.finished, counters.cancelled, counters.failed],
        "evicted": prefixes.statistics().evicted > 0,
    }


def _first(ticket: Ticket) -> Sequence[int]:
    response = ticket.get(60)
    assert response is not None
    return response.tokens


def without(pair: Pair) -> dict[str, Any]:
    """The same requests one at a time, by no engine."""
    prompts = [prompt_of(length) for length in LENGTHS]
    options = wanted()
    answers = [alone(pair, *job) for job in zip(prompts[:-1], options[:-1], strict=True)]
    turns = [[*p, *a, 7, 8, 9] for p, a in zip(prompts, answers, strict=False)]
    return {
        "answers": answers,
        "others": [alone(pair, prompts[0], one) for one in own_ways()],
        "later": [alone(pair, turn, Options(4)) for turn in turns],
        "cut": alone(pair, prompts[-1], options[-1]),
    }


class Odd:
    """A store of prefixes that the others do not know of."""


def refusals(pair: Pair) -> list[str]:
    """What an engine of several processes does not take."""
    found = []
    for make in (
        lambda: PrefixCache(pair, PrefixOptions(folder=Path("x"))),
        lambda: Engine(pair, prefixes=Odd()),  # type: ignore[arg-type]
    ):
        try:
            make()
        except DFlashError as error:
            found.append(str(error))
    return found


def everything(group: mx.distributed.Group | None) -> dict[str, Any]:
    """All that is compared, by family; nothing where this rank follows."""
    found: dict[str, Any] = {}
    for shard, families in CASES.items():
        ranks = Ranks(group, shard) if group else ALONE  # type: ignore[arg-type]
        for family in families:
            pair = pair_of(family, ranks)
            if not ranks.leads:
                follow(pair)
                continue
            with ranks.lead():
                found[family] = {"roomy": served(pair, 1 << 30)}
                if family == families[0]:
                    found[family]["narrow"] = served(pair, 30 << 10)
                if group is None:
                    found[family]["without"] = without(pair)
                found[family]["sizes"] = [size.bytes(1000) for size in sizes_of(pair)]
                found[family]["refused"] = refusals(pair) if group else []
    return found


if __name__ == "__main__":
    made = everything(join().group)
    if made:
        Path(sys.argv[1]).write_text(json.dumps(made))
