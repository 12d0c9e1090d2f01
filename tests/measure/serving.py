"""Requests in one engine: together, in turns, one at a time; or clients of servers.

    python -m tests.measure.serving [--counts 1,4,16] [--tokens 64] [--repeats 5] [--block N]
    python -m tests.measure.serving --servers [--counts 1,4,16] [--tokens 64] [--repeats 5]

The same prompts are answered in every way in turn, in one process, on the embedded pair in
float32; a first pass of every way is not counted. A way's rate is all tokens over the time from
the first submission to the last response. Ratios are medians over the repeats of ratios within
one, with their range. "plain" ways leave the draft out. Answers are compared before anything is
shown. The last line of stdout is one JSON document; with `--json`, the only one.

With `--servers` so many clients ask our server, ours with one place and `mlx_lm.server` on the same
target (`servers.py`): tokens per second of all together (median, least and most of the passes),
time to the first token, and how many answers are what the library says alone; as a table, or with
`--json` as one document.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from dflash_mlx.engine import Engine, EngineOptions
from dflash_mlx.loading import Pair, load
from dflash_mlx.options import Options

from . import FAST_BLAS, servers

PROMPTS = Path(__file__).parents[1] / "data" / "prompts.json"
Jobs = list[tuple[list[int], Options]]
Answers = list[list[int]]


def served(pair: Pair, jobs: Jobs, places: int, together: bool) -> tuple[Answers, float, float]:
    """All at once: ids of each, seconds in all, tokens per round and request."""
    with Engine(pair, EngineOptions(places=places, queue=len(jobs), together=together)) as engine:
        began = time.perf_counter()
        tickets = [engine.submit(prompt, options) for prompt, options in jobs]
        answers = [[t for response in ticket for t in response.tokens] for ticket in tickets]
        seconds = time.perf_counter() - began
        counters = engine.counters
    return answers, seconds, (counters.tokens - len(jobs)) / max(counters.rounds, 1)


def ways(pair: Pair, jobs: Jobs) -> dict[str, Callable[[], tuple[Answers, float, float]]]:
    plain = [(prompt, Options(options.max_tokens, speculate=False)) for prompt, options in jobs]
    return {
        f"{name}{suffix}": lambda j=j, p=places, t=together: served(pair, j, p, t)
        for suffix, j in (("", jobs), (" plain", plain))
        for name, places, together in (
            ("together", len(jobs), True),
            ("turns", len(jobs), False),
            ("one", 1, False),
        )
    }


def jobs_of(pair: Pair, count: int, tokens: int, block: int | None) -> Jobs:
    items = json.loads(PROMPTS.read_text())
    jobs = []
    for i in range(count):
        message = [{"role": "user", "content": items[i % len(items)]["prompt"]}]
        prompt = pair.tokenizer.apply_chat_template(message, add_generation_prompt=True)
        # Mixed lengths: half of `tokens` to all of it.
        jobs.append((prompt, Options(max_tokens=tokens - tokens // 2 * (i % 3) // 2, block=block)))
    return jobs


def measure(pair: Pair, jobs: Jobs, repeats: int) -> dict[str, Any]:
    runs: dict[str, list[tuple[float, float]]] = {}
    answers: dict[str, Answers] = {}
    for repeat in range(repeats + 1):
        for name, run in ways(pair, jobs).items():
            answers[name], seconds, per_round = run()
            rate = sum(len(ids) for ids in answers[name]) / seconds
            if repeat:
                runs.setdefault(name, []).append((rate, per_round))
        print(f"{len(jobs)} requests, pass {repeat}", file=sys.stderr, flush=True)
    expected = answers["one plain"]
    figures: dict[str, Any] = {
        "requests": len(jobs),
        "identical": {name: found == expected for name, found in answers.items()},
        "tokens_s": {n: round(statistics.median(r for r, _ in runs[n]), 2) for n in runs},
        "tokens_per_round": {n: round(statistics.median(p for _, p in runs[n]), 3) for n in runs},
    }
    for name in runs:
        if name != "one plain":
            figures[f"{name} to one plain"] = ratio(runs[name], runs["one plain"])
    figures["together to turns"] = ratio(runs["together"], runs["turns"])
    figures["together plain to turns plain"] = ratio(runs["together plain"], runs["turns plain"])
    return figures


def ratio(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> dict[str, float]:
    ratios = [x / y for (x, _), (y, _) in zip(a, b, strict=True)]
    figures = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="1,4,16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--block", type=int)
    parser.add_argument("--servers", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    counts = [int(part) for part in args.counts.split(",")]
    pair = load(quiet=True)
    result: dict[str, Any] = {"openblas": FAST_BLAS, "mlx": mx.__version__, "counts": []}
    if args.servers:
        result |= {"mlx_lm": version("mlx-lm"), "tokens": args.tokens, "repeats": args.repeats}
        result["counts"] = servers.compare(pair, counts, args.tokens, args.repeats, args.block)
        print(json.dumps(result) if args.json else servers.table(result["counts"]))
        return
    for count in counts:
        figures = measure(pair, jobs_of(pair, count, args.tokens, args.block), args.repeats)
        result["counts"].append(figures)
        if not args.json:
            print(json.dumps(figures, indent=1), flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
