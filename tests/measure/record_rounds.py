"""Records what the embedded draft proposes at every place of an answer, for the simulator.

    python -m tests.measure.record_rounds tests/data/rounds.jsonl [--tokens 200] [--block 5]

The text is the target's greedy one, so it is the same whatever widths are verified. A block is
drafted behind every token of it: with that, a round of any width from any place can be replayed.
One line of JSON per answer: its kind, the length of its prompt, the ids of both, and per place the
draft's probabilities and how many of the drafted tokens the text agrees with.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from dflash_mlx.ahead import SCALE, AheadStep
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.generation import rounds
from dflash_mlx.loading import Pair, load
from dflash_mlx.options import Options
from dflash_mlx.session import Session

from .embedded import PROMPTS

KINDS = ("code", "math", "story", "json", "explain")


def record(pair: Pair, prompt: list[int], tokens: int) -> dict[str, Any]:
    assert pair.draft is not None
    greedy = Options(max_tokens=tokens)
    text = prompt + [t for r in rounds(pair, prompt, greedy) for t in r.tokens]
    session = Session(pair.target, pair.draft)
    session.prefill(text, chunk=512)
    context, size = session.context, pair.draft.config.block_size
    assert context is not None
    step = AheadStep(pair.target, pair.draft, greedy.sampling, 0)
    none, key = mx.zeros(0, mx.int32), mx.random.key(0)
    agreed, certainty = [], []
    # From the end: a block is written over context rows that no earlier one reads.
    for place in range(len(text) - 2, len(prompt) - 1, -1):
        context.trim(place)
        anchor = mx.array(text[place : place + 1], mx.int32)
        ahead = step(anchor, place, context.begin(place, size, fixed=False), none, key)
        context.update(ahead.context)
        certainty.append([round(p / SCALE, 4) for p in ahead.packed.tolist()])
        agreed.append(leading(ahead.block.drafted.tolist(), text[place + 1 :]))
    found = {"prompt": len(prompt), "certainty": certainty[::-1], "agreed": agreed[::-1]}
    return {**found, "ids": text}


def leading(block: list[int], text: list[int]) -> int:
    """How many tokens of a block the text begins with."""
    pairs = zip(block, text, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(block), len(text)))


def with_block(draft: DFlashDraft, size: int) -> None:
    draft._config = replace(draft.config, block_size=size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--block", type=int, default=5)
    parser.add_argument("--kinds", default=",".join(KINDS))
    args = parser.parse_args()
    pair = load(quiet=True)
    assert pair.draft is not None
    with_block(pair.draft, args.block)
    with args.out.open("w") as out:
        for item in json.loads(PROMPTS.read_text()):
            if item["kind"] not in args.kinds.split(","):
                continue
            message = [{"role": "user", "content": item["prompt"]}]
            prompt = pair.tokenizer.apply_chat_template(message, add_generation_prompt=True)
            found = {"kind": item["kind"], **record(pair, prompt, args.tokens)}
            print(json.dumps(found, separators=(",", ":")), file=out, flush=True)
            mean = sum(found["agreed"]) / max(1, len(found["agreed"]))
            print(f"{item['kind']:10} {len(found['agreed'])} places, {mean:.2f} agreed", flush=True)


if __name__ == "__main__":
    main()
