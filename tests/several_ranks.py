"""One of several processes that answer with reduced models together; see test_several.py."""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dflash_mlx.blas import prefer_openblas

prefer_openblas()  # before anything imports mlx

import mlx.nn as nn  # noqa: E402

from dflash_mlx import sharding  # noqa: E402
from dflash_mlx.costs import Corrected  # noqa: E402
from dflash_mlx.errors import DFlashError, UsageError  # noqa: E402
from dflash_mlx.generation import rounds  # noqa: E402
from dflash_mlx.guide import Guide  # noqa: E402
from dflash_mlx.loading import Pair  # noqa: E402
from dflash_mlx.options import Options  # noqa: E402
from dflash_mlx.ranks import ALONE, Ranks, join  # noqa: E402
from dflash_mlx.sampling import Sampling  # noqa: E402
from dflash_mlx.session import Session  # noqa: E402
from dflash_mlx.several import follow  # noqa: E402
from dflash_mlx.targets import target_for  # noqa: E402
from dflash_mlx.ties import read_twice  # noqa: E402

from .choosers import linear  # noqa: E402
from .families import ScriptedDraft, draft_config, plain_ids, prompt_of  # noqa: E402
from .guides import tokenizer  # noqa: E402
from .reduced import CONFIGS, build, make  # noqa: E402

TENSOR = (
    *("llama", "llama-sliding", "qwen2", "qwen3", "qwen3_moe", "qwen3_5", "qwen3_5-tied"),
    *("qwen3_5_moe", "deepseek_v3", "kimi_k25", "glm4_moe_lite", "glm_moe_dsa", "gpt_oss"),
    *("minimax_m2", "glm4_moe"),
)
PIPELINE = tuple(family for family in CONFIGS if family != "gemma4-shared")
PROMPT = prompt_of(11)
TOKENS = 8
SEEDED = Sampling(temperature=0.8, top_k=20, repetition_penalty=1.1)


def wide() -> Any:
    """A llama whose rows are whole groups on every rank."""
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    return make(CONFIGS["llama"] | sizes, "llama")


def pair_of(family: str, ranks: Ranks, bits: int | None = None) -> Pair:
    """This rank's part of a reduced model, and a draft that is right up to some place."""
    config = draft_config(block_size=4, **({"hidden_size": 64} if bits else {}))
    truth = [*PROMPT, *plain_ids(family, PROMPT, TOKENS)]
    draft = ScriptedDraft(config, truth, lambda p: p % 4)
    model = wide() if bits else build(family)
    if bits:
        nn.quantize(model, 32, bits)
    text = CONFIGS[family].get("text_config", CONFIGS[family])
    sharding.check(text, family, ranks)
    sharding.cut(model, family, ranks)
    target = target_for(model, config.taps, ranks)
    return Pair(target, draft, tokenizer(), frozenset(), 4096, family, "scripted")


def answers(pair: Pair) -> list[list[int]]:
    """Greedy: a few tokens plainly, then drafted."""
    plain = said(pair, Options(2, speculate=False))
    return [plain, said(pair, Options(TOKENS))]


def more_answers(pair: Pair) -> list[Any]:
    """What does not depend on the family: sampling, sessions, widths, leaving, readings."""
    session = Session(pair.target, pair.draft)
    found: list[Any] = [said(pair, Options(5, prefill_chunk=4), session)]
    left = rounds(pair, PROMPT, Options(TOKENS), session)
    found.append([next(left).tokens, next(left).tokens])
    left.close()
    sampled = Options(6, SEEDED, seed=5)
    found.append(said(pair, sampled, session, [*session.ids, 1, 2]))
    if pair.name == "qwen3_5":  # compiling takes seconds
        found.append(said(pair, replace(sampled, compiled=True)))
    found.append(interrupted(pair, session))
    pair.costs = Corrected(linear(4, 0.1)) if pair.ranks.leads else None
    found.append(said(pair, Options(6, block="auto"), session))
    found.append(said(pair, Options(6, lookup="on"), None, PROMPT * 2 + PROMPT[:3]))
    found.append(said(pair, Options(TOKENS, SEEDED, seed=6, guide=Guide.regex("[a-z]{4,6}"))))
    read = read_twice(pair.target, PROMPT, PROMPT[:4], 2)
    found.append([(p.token, p.best[0], p.wide[0]) for p in read])
    return found


def interrupted(pair: Pair, session: Session) -> list[int]:
    """What came until Ctrl-C, which arrives in the second round."""
    before = signal.signal(signal.SIGINT, pair.ranks.interrupt)
    ids: list[int] = []
    try:
        for round_ in rounds(pair, PROMPT, Options(30), session):
            ids += round_.tokens
            if len(ids) > 1:
                os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        return ids
    finally:
        signal.signal(signal.SIGINT, before)
    raise AssertionError


def said(
    pair: Pair, options: Options, session: Session | None = None, prompt: list[int] | None = None
) -> list[int]:
    """The ids of an answer."""
    found = rounds(pair, prompt or PROMPT, options, session)
    return [token for round_ in found for token in round_.tokens]


def of(
    families: tuple[str, ...],
    ranks: Ranks,
    ask: Callable[[Pair], list[Any]] = answers,
    bits: int | None = None,
) -> dict[str, Any]:
    """The answers of every family; nothing where this rank follows."""
    found = {}
    for family in families:
        pair = pair_of(family, ranks, bits)
        if not ranks.leads:
            follow(pair)
            continue
        with ranks.lead():
            found[family] = ask(pair)
    return found


def everything(tensor: Ranks = ALONE, pipeline: Ranks = ALONE) -> dict[str, Any]:
    """All that is compared, by what it is called."""
    return {
        "tensor": of(TENSOR, tensor),
        "pipeline": of(PIPELINE, pipeline),
        "more": of(("llama-sliding", "qwen3_5"), tensor, more_answers),
        "more in stages": of(("qwen3_next",), pipeline, more_answers),
        "quantised": of(("llama",), tensor, bits=8),
    }


def main(out: Path) -> None:
    """Write everything, on rank 0."""
    group = join().group
    ranks = Ranks(group)
    failing: list[Any] = []
    try:
        ranks.together(partial(fail, ranks.rank))
    except DFlashError as error:
        failing = [str(error)]
    found = everything(ranks, Ranks(group, "pipeline")) | {"failing": failing}
    if ranks.leads:
        out.write_text(json.dumps(found))


def fail(rank: int) -> None:
    """Fail on rank 1."""
    if rank:
        raise UsageError("no such file")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
