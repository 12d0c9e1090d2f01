"""The embedded pair beside mlx-lm: same ids, tokens per round, speed as ratios.

    python -m tests.measure.embedded [--prompts 40] [--tokens 128] [--blocks 4,8,auto] [--repeats 1]

Every prompt is answered by stock mlx-lm, by our plain decoding and by DFlash, in turn, in one
process and in float32. Prompts are of kinds the draft was trained on (`heldout`) and of kinds it
never saw (`ood`); none of them was trained on. Ratios are medians over prompts and repeats. Before
anything is timed, every way answers once, which with block "auto" measures the passes of this
machine. The last line of stdout is one JSON document.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx_lm

from dflash_mlx.generation import stream_generate
from dflash_mlx.loading import Pair, load
from dflash_mlx.options import AUTO, Options

from . import FAST_BLAS

Block = int | Literal["auto"]
WARM_TOKENS = 24
PROMPTS = Path(__file__).parents[1] / "data" / "prompts.json"


def by_mlx_lm(pair: Pair, prompt: list[int], tokens: int) -> dict[str, Any]:
    ids, start = [], 0.0
    for response in mlx_lm.stream_generate(
        pair.target.model, pair.tokenizer, prompt, max_tokens=tokens
    ):
        start = start or time.perf_counter()
        if len(ids) < response.generation_tokens:  # the closing response repeats the last token
            ids.append(response.token)
    return {"ids": ids, "rate": (len(ids) - 1) / (time.perf_counter() - start)}


def by_us(pair: Pair, prompt: list[int], tokens: int, **options: Any) -> dict[str, Any]:
    ids: list[int] = []
    for response in stream_generate(pair, prompt, Options(max_tokens=tokens, **options)):
        ids += response.tokens
    return {"ids": ids, "rate": response.generation_tps, "stats": response.stats}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--stride", type=int, default=1, help="take every n-th prompt")
    parser.add_argument("--kinds", help="of prompts, with commas between; all if not given")
    parser.add_argument("--repeats", type=int, default=1, help="how often all ways take turns")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--blocks", default="4,8")
    args = parser.parse_args()
    blocks = [AUTO if b == AUTO else int(b) for b in args.blocks.split(",")]
    pair = load(quiet=True)
    rows = []
    items = json.loads(PROMPTS.read_text())
    every_way(pair, items[-1], WARM_TOKENS, blocks)
    wanted = args.kinds.split(",") if args.kinds else {item["kind"] for item in items}
    chosen = [item for item in items if item["kind"] in wanted]
    for item in chosen[:: args.stride][: args.prompts] * args.repeats:
        done = every_way(pair, item, args.tokens, blocks)
        same = all(run["ids"] == done["mlx_lm"]["ids"] for run in done.values())
        rows.append({"split": item["split"], "kind": item["kind"], "same": same, "runs": done})
        rates = {name: round(run["rate"], 1) for name, run in done.items()}
        print(f"{item['kind']:10} same={same} tok/s {rates}", flush=True)
    print(json.dumps(summary(rows, blocks)))


def every_way(
    pair: Pair, item: dict[str, str], tokens: int, blocks: Sequence[Block]
) -> dict[str, Any]:
    message = [{"role": "user", "content": item["prompt"]}]
    prompt = pair.tokenizer.apply_chat_template(message, add_generation_prompt=True)
    done = {"mlx_lm": by_mlx_lm(pair, prompt, tokens)}
    done["plain"] = by_us(pair, prompt, tokens, speculate=False)
    for block in blocks:
        done[f"block {block}"] = by_us(pair, prompt, tokens, block=block)
    return done


def summary(rows: list[dict[str, Any]], blocks: Sequence[Block]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "answers": len(rows),
        "identical": sum(row["same"] for row in rows),
        "openblas": FAST_BLAS,
        "mlx": mx.__version__,
        "plain_to_mlx_lm": ratio(rows, "plain", "mlx_lm"),
    }
    for block in blocks:
        name = f"block {block}"
        figures: dict[str, Any] = {"to_plain": ratio(rows, name, "plain")}
        figures["to_mlx_lm"] = ratio(rows, name, "mlx_lm")
        for split in ("heldout", "ood"):
            found = pooled([row for row in rows if row["split"] == split], name)
            figures[f"tokens_per_round_{split}"] = found
        figures["tokens_per_round_all"] = pooled(rows, name)
        by_kind = {row["kind"]: [r for r in rows if r["kind"] == row["kind"]] for row in rows}
        figures["to_plain_by_kind"] = {k: ratio(own, name, "plain") for k, own in by_kind.items()}
        figures["tokens_per_round_by_kind"] = {k: pooled(own, name) for k, own in by_kind.items()}
        result[name] = figures
    return result


def pooled(rows: list[dict[str, Any]], name: str) -> float:
    """Tokens per round over all rounds of some prompts."""
    stats = [row["runs"][name]["stats"] for row in rows]
    return round(sum(s.round_tokens for s in stats) / max(1, sum(s.rounds for s in stats)), 3)


def ratio(rows: list[dict[str, Any]], a: str, b: str) -> float:
    """Median over prompts and repeats of the ratio of decode speeds."""
    ratios = [row["runs"][a]["rate"] / row["runs"][b]["rate"] for row in rows]
    return round(statistics.median(ratios), 3)


if __name__ == "__main__":
    main()
