"""Time per round where computing takes next to none, beside the published `dflash` 0.1.0.

    pip install --no-deps dflash==0.1.0
    python -m tests.measure.overhead

Both decode with the same weights in one process, in turn: a target with the layers of a real
one and almost no width, so that what is left is Python, graph building and dispatch.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from dflash import model_mlx as published
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen3
from mlx_lm.tokenizer_utils import load as load_tokenizer

from dflash_mlx.config import FULL, DraftConfig, Rope
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.embedded import embedded_target
from dflash_mlx.generation import stream_generate
from dflash_mlx.loading import Pair
from dflash_mlx.options import Options
from dflash_mlx.targets import target_for

SIZE, VOCAB = 32, 256
SHAPE: dict[str, Any] = {
    "hidden_size": SIZE,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "rope_theta": 1e4,
}


def target(family: str, layers: int) -> Any:
    module = {"llama": llama, "qwen3": qwen3}[family]
    args = module.ModelArgs(
        model_type=family, num_hidden_layers=layers, tie_word_embeddings=True, **SHAPE
    )
    model = module.Model(args)
    mx.eval(model.parameters())
    return model


def drafts(layers: int, block: int, count: int = 5) -> tuple[DFlashDraft, Any]:
    """Our draft and the published one with the same random weights."""
    taps = tuple(int(1 + i * (layers - 4) / 4) for i in range(5))
    ours = DFlashDraft(
        DraftConfig(
            hidden_size=SIZE,
            num_layers=count,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            intermediate_size=64,
            vocab_size=VOCAB,
            rms_norm_eps=1e-6,
            max_position_embeddings=4096,
            attention_bias=False,
            block_size=block,
            taps=taps,
            mask_token_id=VOCAB - 1,
            rope=Rope("default", 1e4),
            layer_types=(FULL,) * count,
            causal=(False,) * count,
            sliding_window=None,
            num_target_layers=layers,
            final_logit_softcapping=None,
            output_multiplier=1.0,
            input_embedding_scale=1.0,
        )
    )
    fields = {k: v for k, v in SHAPE.items() if k != "vocab_size"}
    theirs = published.DFlashDraftModel(
        published.DFlashConfig(
            **fields,
            vocab_size=VOCAB,
            num_hidden_layers=count,
            block_size=block,
            target_layer_ids=taps,
            num_target_layers=layers,
            mask_token_id=VOCAB - 1,
        )
    )
    theirs.load_weights(tree_flatten(ours.parameters()))
    mx.eval(theirs.parameters())
    return ours.prepare(), theirs


def per_round(responses: Iterator[Any], surplus: int) -> tuple[float, float]:
    """Wall and main-thread CPU seconds per round, from the first token to the last.

    Args:
        responses: one per round, after one for the first token.
        surplus: how many of those after the first are no rounds.
    """
    next(responses)
    wall, cpu = time.perf_counter(), time.thread_time()
    count = sum(1 for _ in responses) - surplus
    return (time.perf_counter() - wall) / count, (time.thread_time() - cpu) / count


def measure(family: str, layers: int, block: int, tokens: int, repeats: int) -> dict[str, Any]:
    model = target(family, layers)
    ours, theirs = drafts(layers, block)
    tokenizer = load_tokenizer(embedded_target(quiet=True))
    tokenizer.eos_token_ids = set()
    prompt = [i % 200 for i in range(40)]
    pair = Pair(target_for(model, ours.config.taps), ours, tokenizer, frozenset(), 4096, "", "")

    def run_ours(compiled: bool) -> tuple[float, float]:
        options = Options(max_tokens=tokens, compiled=compiled)
        return per_round(stream_generate(pair, prompt, options), 0)

    def run_theirs() -> tuple[float, float]:
        source = published.stream_generate(
            other, theirs, tokenizer, mx.array(prompt), max_tokens=tokens
        )
        return per_round(source, 1)  # it closes with a response of no tokens

    # The published loop wraps layers of the model it is given: it gets a copy of its own.
    other = target(family, layers)
    other.load_weights(tree_flatten(model.parameters()))
    runs = {
        "compiled": lambda: run_ours(True),
        "eager": lambda: run_ours(False),
        "published": run_theirs,
    }
    for run in runs.values():
        run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(run())
    row: dict[str, Any] = {"family": family, "layers": layers, "block": block}
    for index, kind in enumerate(("wall", "cpu")):
        for name, values in times.items():
            row[f"{name}_{kind}_ms"] = round(1e3 * statistics.median(v[index] for v in values), 2)
        both = zip(times["compiled"], times["published"], strict=True)
        row[f"{kind}_ratio"] = round(statistics.median(a[index] / b[index] for a, b in both), 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for family, layers in (("qwen3", 36), ("llama", 32), ("qwen3", 8)):
        for block in (8, 16):
            rows.append(measure(family, layers, block, args.tokens, args.repeats))
            print(json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
