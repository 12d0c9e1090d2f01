"""Tokens per round of the embedded pair on long prompts, by what its draft sees of them.

    python -m tests.measure.draft_window [--context N] [--tokens N] [--windows N,N] [--sinks N,N]

Prompts are the beginnings of this project's documents, to be gone on with, greedily: the text is
the same for every window, so that only the draft differs. The last line is one JSON document.
"""

import argparse
import json
from pathlib import Path

from dflash_mlx.generation import rounds
from dflash_mlx.loading import Pair, load
from dflash_mlx.options import Options
from dflash_mlx.session import Session

DOCS = Path(__file__).parents[2] / "docs"
NAMES = ("models", "train", "kernels", "benchmarks")


def prompts(pair: Pair, context: int) -> list[list[int]]:
    """The documents that are long enough, cut to `context` tokens."""
    texts = [pair.encode((DOCS / f"{name}.md").read_text(encoding="utf-8")) for name in NAMES]
    return [ids[:context] for ids in texts if len(ids) >= context]


def measure(pair: Pair, asked: list[list[int]], tokens: int) -> tuple[float, int, list[int]]:
    """Tokens per round, most slots of a layer of the draft's context, and all ids."""
    count = brought = slots = 0
    ids: list[int] = []
    for prompt in asked:
        session = Session(pair.target, pair.draft)
        for round_ in rounds(pair, prompt, Options(max_tokens=tokens), session):
            ids += round_.tokens
            count, brought = count + (round_.drafted > 0), brought + len(round_.tokens)
        assert session.context is not None
        slots = max(slots, *(a.shape[2] for a in session.context.arrays()))
    return (brought - len(asked)) / count, slots, ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--windows", default="64,256")
    parser.add_argument("--sinks", default="0,4")
    args = parser.parse_args()
    windows = [int(w) for w in args.windows.split(",")]
    settings = [(w, int(s)) for w in windows for s in args.sinks.split(",")]
    found, text = [], None
    for window, sink in [(None, 0), *settings]:
        pair = load(draft_window=window, draft_sink=sink)
        asked = prompts(pair, args.context)
        tau, slots, ids = measure(pair, asked, args.tokens)
        text = text or ids
        row = {"window": window, "sink": sink, "tau": round(tau, 3), "slots": slots}
        found.append(row | {"same": ids == text, "prompts": len(asked)})
        print(found[-1], flush=True)
    print(json.dumps({"context": args.context, "tokens": args.tokens, "found": found}))


if __name__ == "__main__":
    main()
