"""The embedded pair in few bits: size, drift, tokens per round, speed as a ratio.

    python -m tests.measure.convert [--bits 16,8,4] [--prompts 6] [--tokens 96] [--timed 2]

Drift and tokens per round are computed in float32 from the weights as they are stored, on held-out
prompts of the kinds that the draft was trained on. The ratio is speculative to plain decoding with
the stored weights, by turns in one process, the median over prompts. One JSON document a line.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dflash_mlx.checkpoint import read_config
from dflash_mlx.convert.calibrate import answer, converted_draft, converted_target
from dflash_mlx.convert.plan import Source
from dflash_mlx.convert.recipe import DraftRecipe, TargetRecipe
from dflash_mlx.convert.run import Request, prepare
from dflash_mlx.convert.texts import Text, drift, features, log_probabilities, tokens_per_round
from dflash_mlx.embedded import embedded_draft, embedded_target
from dflash_mlx.generation import rounds
from dflash_mlx.loading import Pair, load
from dflash_mlx.options import Options

from . import FAST_BLAS

PROMPTS = Path(__file__).parents[1] / "data" / "prompts.json"
AS_STORED = 8  # bits of the draft in the package
DRAFT_BITS = (None, 4, 3)  # None: as stored


def requests(pair: Pair, count: int) -> list[list[int]]:
    found = [p for p in json.loads(PROMPTS.read_text()) if p["split"] == "heldout"]
    step = max(1, len(found) // count)
    messages = [[{"role": "user", "content": p["prompt"]}] for p in found[::step][:count]]
    return [
        list(pair.tokenizer.apply_chat_template(m, add_generation_prompt=True)) for m in messages
    ]


def seconds(pair: Pair, prompt: list[int], options: Options) -> float:
    """Per token behind the first."""
    done = rounds(pair, prompt, options)
    next(done)
    start, count = time.perf_counter(), 0
    for round_ in done:
        count += len(round_.tokens)
    return (time.perf_counter() - start) / max(1, count)


def ratio(pair: Pair, prompts: list[list[int]], tokens: int) -> float:
    plain = Options(tokens, speculate=False)
    for options in (plain, Options(tokens)):  # a round to warm up
        seconds(pair, prompts[0], options)
    found = [seconds(pair, p, plain) / seconds(pair, p, Options(tokens)) for p in prompts]
    return round(statistics.median(found), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--timed", type=int, default=2, help="prompts for the ratio, 0 for none")
    parser.add_argument("--timed-tokens", type=int, default=16)
    parser.add_argument("--bits", default="16,8,4", help="of the target")
    args = parser.parse_args()
    target, draft = Source("target", embedded_target()), Source("draft", embedded_draft())
    raw = read_config(target.path)
    source = load(str(target.path), str(draft.path), quiet=True)
    prompts = requests(source, args.prompts)
    answers = [answer(source, prompt, args.tokens) for prompt in prompts]
    before = [log_probabilities(source.target, text) for text in answers]
    print(json.dumps({"openblas": FAST_BLAS, "prompts": len(prompts), "tokens": args.tokens}))
    for bits in (None if b == 16 else b for b in map(int, args.bits.split(","))):
        recipe = TargetRecipe(bits)
        pair = replace(source, target=converted_target(target, recipe, source.target.taps))
        after = [log_probabilities(pair.target, text) for text in answers]
        texts = [answer(pair, prompt, args.tokens) for prompt in prompts]
        read: list[tuple[Text, Any]] = [(text, features(pair.target, text)) for text in texts]
        row: dict[str, Any] = {"target_bits": bits or 16, "drift": round(drift(before, after), 4)}
        for draft_bits in DRAFT_BITS:
            how = DraftRecipe.of(draft_bits)
            tau = tokens_per_round(pair.target, converted_draft(draft, how, raw, pair), read)
            row |= {"draft_bits": draft_bits or AS_STORED, "tau": round(tau, 3)}
            with tempfile.TemporaryDirectory() as scratch:
                out = Path(scratch) / "pair"
                request = Request("smollm2-135m", out, target=recipe, drafter=how)
                job = prepare(request, quiet=True)
                row |= {f"{p.part}_mib": round(p.size / 2**20, 1) for p in job.plans}
                if args.timed:
                    job.write(lambda *_: None)
                    stored = load(str(out), quiet=True, check=False)
                    row["ratio"] = ratio(stored, prompts[: args.timed], args.timed_tokens)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
