"""One of several processes that answer with reduced models together; see test_several.py."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dflash_mlx.blas import prefer_openblas

prefer_openblas()  # before anything imports mlx

from dflash_mlx import sharding  # noqa: E402
from dflash_mlx.generation import rounds  # noqa: E402
from dflash_mlx.loading import Pair  # noqa: E402
from dflash_mlx.options import Options  # noqa: E402
from dflash_mlx.ranks import ALONE, Ranks, join  # noqa: E402
from dflash_mlx.sampling import Sampling  # noqa: E402
from dflash_mlx.session import Session  # noqa: E402
from dflash_mlx.several import follow  # noqa: E402
from dflash_mlx.targets import target_for  # noqa: E402

from .families import ScriptedDraft, draft_config, plain_ids, prompt_of  # noqa: E402
from .reduced import CONFIGS, build  # noqa: E402

TENSOR = (
    *("llama", "llama-sliding", "qwen2", "qwen3", "qwen3_moe", "qwen3_5", "qwen3_5-tied"),
    *("qwen3_5_moe", "deepseek_v3", "kimi_k25", "glm4_moe_lite", "glm_moe_dsa", "gpt_oss"),
    *("minimax_m2", "glm4_moe"),
)
PIPELINE = tuple(family for family in CONFIGS if family != "gemma4-shared")
PROMPT = prompt_of(11)
TOKENS = 8
SEEDED = Sampling(temperature=0.8, top_k=20, repetition_penalty=1.1)


def pair_of(family: str, ranks: Ranks) -> Pair:
    """This rank's part of a reduced model, and a draft that is right up to some place."""
    config = draft_config(block_size=4)
    truth = [*PROMPT, *plain_ids(family, PROMPT, TOKENS)]
    draft = ScriptedDraft(config, truth, lambda p: p % 4)
    model = build(family)
    text = CONFIGS[family].get("text_config", CONFIGS[family])
    sharding.check(text, family, ranks)
    sharding.cut(model, family, ranks)
    target = target_for(model, config.taps, ranks)
    return Pair(target, draft, None, frozenset(), 4096, family, "scripted")


def answers(pair: Pair) -> Iterator[list[int]]:
    """Plain and drafted, greedy and sampled; the last one in a session that goes on."""
    session = Session(pair.target, pair.draft)
    yield said(pair, Options(TOKENS, prefill_chunk=8, speculate=False))
    yield said(pair, Options(TOKENS, prefill_chunk=8), session)
    sampled = Options(TOKENS, SEEDED, seed=5)
    yield said(pair, sampled, session, [*session.ids, 1, 2])


def said(
    pair: Pair, options: Options, session: Session | None = None, prompt: list[int] | None = None
) -> list[int]:
    """The ids of an answer."""
    found = rounds(pair, prompt or PROMPT, options, session)
    return [token for round_ in found for token in round_.tokens]


def all_answers(families: tuple[str, ...], ranks: Ranks = ALONE) -> dict[str, Any]:
    """Of every family; nothing where this rank follows."""
    found = {}
    for family in families:
        pair = pair_of(family, ranks)
        if not ranks.leads:
            follow(pair)
            continue
        with ranks.lead():
            found[family] = list(answers(pair))
    return found


def main(shard: str, out: Path) -> None:
    """Write the answers of all families that can be shared so, on rank 0."""
    ranks = join("pipeline" if shard == "pipeline" else "tensor")
    found = all_answers(PIPELINE if ranks.staged else TENSOR, ranks)
    if ranks.leads:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
