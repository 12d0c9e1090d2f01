"""Tokens per round of the embedded pair in long conversations, by what its draft sees of them.

    python -m tests.measure.draft_window [--prompts N] [--tokens N] [--windows N,N] [--sinks N,N]

A prompt is a conversation of all sample problems of gsm8k with their solutions, in another order
each time, whose last problem is to be solved, greedily: the text is the same for every window, so
that only the draft differs. The last line is one JSON document.
"""

import argparse
import json
from importlib.resources import files

from dflash_mlx.generation import rounds
from dflash_mlx.loading import Pair, load
from dflash_mlx.options import Options
from dflash_mlx.session import Session

SAMPLES = files("dflash_mlx") / "bench" / "data" / "samples" / "gsm8k.jsonl"


def prompts(pair: Pair, count: int) -> list[list[int]]:
    """Conversations that end with a question."""
    rows = [json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    return [_conversation(pair, rows[i:] + rows[:i]) for i in range(count)]


def _conversation(pair: Pair, rows: list[dict[str, str]]) -> list[int]:
    messages = []
    for row in rows:
        messages.append({"role": "user", "content": row["question"]})
        messages.append({"role": "assistant", "content": row["answer"]})
    ids: list[int] = pair.tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)
    return ids


def measure(pair: Pair, asked: list[list[int]], tokens: int) -> tuple[float, int, list[int]]:
    """Tokens per round, most slots of a layer of the draft's context, and all ids."""
    count = brought = slots = 0
    ids: list[int] = []
    for prompt in asked:
        session = Session(pair.target, pair.draft)
        for index, round_ in enumerate(rounds(pair, prompt, Options(max_tokens=tokens), session)):
            ids += round_.tokens
            if index:
                count, brought = count + 1, brought + len(round_.tokens)
        assert session.context is not None
        slots = max(slots, *(a.shape[2] for a in session.context.arrays()))
    return brought / count, slots, ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--windows", default="64,256")
    parser.add_argument("--sinks", default="4")
    args = parser.parse_args()
    sinks = [int(s) for s in args.sinks.split(",")]
    settings = [(int(w), s) for w in args.windows.split(",") for s in sinks]
    found, text = [], None
    for window, sink in [(None, 0), *settings]:
        pair = load(draft_window=window, draft_sink=sink)
        asked = prompts(pair, args.prompts)
        tau, slots, ids = measure(pair, asked, args.tokens)
        text = text or ids
        row = {"window": window, "sink": sink, "tau": round(tau, 3), "slots": slots}
        longest = max(map(len, asked))
        found.append(row | {"tokens": len(ids), "same": ids == text, "prompt": longest})
        print(found[-1], flush=True)
    print(json.dumps({"prompts": args.prompts, "tokens": args.tokens, "found": found}))


if __name__ == "__main__":
    main()
