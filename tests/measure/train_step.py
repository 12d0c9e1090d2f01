"""What a training step costs: trained tokens a second, and FLOP/s beside a bare matrix product.

    python -m tests.measure.train_step

The embedded target's shapes and head, random features: how good a draft becomes has no part in
it. Seconds are those of the process, as cores may be shared. Steps and products alternate.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from dflash_mlx.checkpoint import read_config
from dflash_mlx.config import DraftConfig
from dflash_mlx.drafts import draft_for
from dflash_mlx.embedded import embedded_draft
from dflash_mlx.loading import load
from dflash_mlx.targets.base import Target
from dflash_mlx.train.heads import Competition
from dflash_mlx.train.loss import Weighting
from dflash_mlx.train.objective import Objective
from dflash_mlx.train.packing import Document, Pack, choose_anchors, pack

TEXTS, LENGTH, ANCHORS, REPEATS = 4, 160, 48, 5


def step_flops(config: DraftConfig, batch: Pack, competing: int) -> float:
    """Multiplications and additions of a step: forward, and twice as much backward.

    The head is frozen, so its backward pass is as much as its forward one.
    """
    size, inner = config.hidden_size, config.intermediate_size
    queries, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    blocks, rows = batch.blocks.shape
    context = (
        2 * batch.tokens * (len(config.taps) * size * size + config.num_layers * 2 * size * kv)
    )
    layer = size * (2 * queries + 2 * kv) + 3 * size * inner
    seen = sum(
        (s.blocks.stop - s.blocks.start) * rows * (s.tokens.stop - s.tokens.start + rows)
        for s in batch.spans
    )
    network = config.num_layers * (2 * blocks * rows * layer + 4 * seen * queries)
    head = 2 * blocks * (rows - 1) * size * competing
    return 3.0 * (context + network) + 2.0 * head


def cpu_seconds(run: Callable[[], None]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def measure(target: Target, config: DraftConfig, negatives: int) -> dict[str, object]:
    random = np.random.default_rng(0)
    documents = [
        Document(random.integers(17, 40000, LENGTH).astype(np.int32), 30) for _ in range(TEXTS)
    ]
    anchors = [choose_anchors(d, ANCHORS, random) for d in documents]
    batch = pack(documents, anchors, config.block_size, config.mask_token_id)
    head = Competition(target, negatives=negatives).head(batch, random)
    features = mx.random.normal((batch.tokens, len(config.taps) * config.hidden_size))
    draft = draft_for(config)
    objective = Objective(target, Weighting(), 256 << 20)
    left, right = mx.random.normal((1536, 576)), mx.random.normal((576, 1536))
    mx.eval(draft.parameters(), features, left, right)
    flops = step_flops(config, batch, head.size)

    def step() -> None:
        measured, gradients = objective.gradients(draft, batch, head, features, 1.0)
        mx.eval(measured, gradients)

    def product() -> None:
        for _ in range(20):
            mx.eval(left @ right)

    step()
    pairs = [(cpu_seconds(step), cpu_seconds(product)) for _ in range(REPEATS)]
    seconds = statistics.median(a for a, _ in pairs)
    bare = 20 * 2 * 1536 * 576 * 1536 / statistics.median(b for _, b in pairs)
    return {
        "parameters": sum(v.size for _, v in tree_flatten(draft.parameters())),
        "competing": head.size,
        "blocks": len(batch.blocks),
        "gflop": round(flops / 1e9, 1),
        "seconds": round(seconds, 3),
        "blocks_s": round(len(batch.blocks) / seconds, 1),
        "trained_tokens_s": round(int(batch.valid.sum()) / seconds, 1),
        "gflop_s": round(flops / seconds / 1e9, 1),
        "product_gflop_s": round(bare / 1e9, 1),
    }


def main() -> None:
    """Print a line of JSON for the full head, and one for sampled tokens."""
    pair = load(speculate=False, quiet=True)
    config = DraftConfig.from_dict(read_config(embedded_draft()), "embedded")
    config = replace(config, block_size=8)
    for negatives in (0, 512):
        print(json.dumps(measure(pair.target, config, negatives)), flush=True)


if __name__ == "__main__":
    main()
