"""The benchmark's figures beside those of the published `dflash` 0.1.0, on the same prompts.

    pip install --no-deps dflash==0.1.0
    python -m tests.measure.bench_peer [--prompts 8] [--tokens 96] [--block 4] [--draft FOLDER]

Its benchmark averages the tokens of the rounds of every request, then those averages over requests:
our `tau_mean`. Both loops run in one process and in turn, on weights of their own copies, and are
timed by the same clock from the first token to the last. The published code knows neither few bits
nor a vocabulary of the draft's own, as the embedded draft has: by default the memorised one runs.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from dflash import model_mlx as published

from dflash_mlx.bench.figures import drafts
from dflash_mlx.bench.records import Arm
from dflash_mlx.bench.statistics import median_interval
from dflash_mlx.bench.talk import Talks
from dflash_mlx.loading import load
from dflash_mlx.options import Options

DATA = Path(__file__).parents[1] / "data"
PROMPTS = DATA / "prompts.json"


def published_draft(source: Path) -> Any:
    """A draft read by the published loader."""
    with patch.object(published, "snapshot_download", lambda path, **_: path):
        draft = published.load_draft(str(source))
    mx.eval(draft.parameters())
    draft.set_dtype(mx.float32)
    mx.eval(draft.parameters())
    return draft


def theirs(
    model: Any, draft: Any, tokenizer: Any, prompt: list[int], block: int, tokens: int
) -> dict[str, Any]:
    ids: list[int] = []
    kept: list[int] = []
    first = last = 0.0
    for response in published.stream_generate(
        model, draft, tokenizer, mx.array(prompt), block_size=block, max_tokens=tokens
    ):
        if response.tokens:
            last = time.perf_counter()
            first = first or last
        ids += response.tokens
        if response.accepted is not None:
            kept.append(response.accepted)
    return {"ids": ids, "kept": kept, "rate": (len(ids) - 1) / (last - first)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--draft", type=Path, default=DATA / "memorised")
    args = parser.parse_args()
    pair = load(draft=str(args.draft), quiet=True)
    other = load(quiet=True).target.model  # the published loop wraps the layers of its model
    draft = published_draft(args.draft)
    options, arm = Options(max_tokens=args.tokens), Arm("dflash", args.block)
    texts = [item["prompt"] for item in json.loads(PROMPTS.read_text())[:: 40 // args.prompts]]
    texts = texts[: args.prompts]
    rounds, kept, ratios, same = [], [], [], 0
    for number, text in enumerate([texts[0], *texts]):  # the first is a warm-up
        talk = Talks(pair, None).open(arm, options)
        prompt = talk.prompt(text)

        def run_theirs(prompt: list[int] = prompt) -> dict[str, Any]:
            return theirs(other, draft, pair.tokenizer, prompt, args.block, args.tokens)

        before = run_theirs() if number % 2 else None
        ours = talk.ask(text)
        found = before or run_theirs()
        if number == 0 or len(ours.ids) < 2:
            continue
        rounds.append(ours.rounds)
        kept.append(found["kept"])
        ratios.append((ours.tokens - 1) / ours.decode_s / found["rate"])
        same += list(ours.ids) == found["ids"]
        print(f"{number}: {len(ours.ids)} tokens, ours by theirs {ratios[-1]:.2f}", flush=True)
    figures = drafts(rounds)
    assert figures is not None
    by_theirs = fmean(fmean(each) for each in kept if each)
    print(
        json.dumps(
            {
                "prompts": len(ratios),
                "block": args.block,
                "same_ids": same,
                "tau_ours": figures.tau_mean,
                "tau_published": by_theirs,
                "tau_ratio": figures.tau_mean / by_theirs,
                "decode_ratio": median_interval(ratios),
            }
        )
    )


if __name__ == "__main__":
    main()
