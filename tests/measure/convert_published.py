"""Converted drafts in the published `dflash` 0.1.0: its MLX loader, its network, the same drafts.

    python -m venv /tmp/published && /tmp/published/bin/pip install mlx mlx-lm numpy
    /tmp/published/bin/pip install --no-deps dflash==0.1.0
    python -m tests.measure.convert_published /tmp/published/bin/python

Every draft of `tests/parity_configs.py` is written with random weights, and one in each of the
other layouts; converted; and read in both environments. Both draft a block behind the same
features: the last hidden states have to agree to rounding, and the drafted tokens, by a random
head and by DFlash 2's selector, have to be equal. Two are known to differ, in the published code:
it cannot load drafts with attention biases (gpt-oss), and ignores a stated amplitude of YaRN.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from dflash_mlx.config import DraftConfig
from dflash_mlx.loading import read_draft
from dflash_mlx.sampling import Sampling
from tests import convert_cases as cases
from tests.parity_configs import CONFIGS

ROWS, SEED = 24, 2
TOLERANCE = 1e-4

THEIRS = """
import sys, json
import mlx.core as mx
import numpy as np
from dflash import model_mlx as published

published.snapshot_download = lambda path, **_: path  # a folder stands for a repo
folder, inputs, output = sys.argv[1:]
draft = published.load_draft(folder)
given = np.load(inputs)
features, block = mx.array(given["features"]), mx.array(given["block"])
head = mx.array(given["head"])
draft.embed_tokens, draft.embed_scale = lambda ids: block, 1.0
draft.lm_head = lambda hidden: hidden @ head.T
ids = mx.full((1, block.shape[1]), int(given["anchor"]), mx.int32)
hidden = draft.hidden_states(ids, features, draft.make_cache(), 1)
if hasattr(draft, "propose"):
    found = draft.propose(ids, features, draft.make_cache(), 0.0, 1)
    tokens = found[0] if isinstance(found, tuple) else found
else:
    tokens = mx.argmax(draft.compute_logits(hidden), axis=-1)
np.savez(output, hidden=np.array(hidden.astype(mx.float32)), tokens=np.array(tokens).reshape(-1))
"""


def ours(folder: Path, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    raw = json.loads((folder / "config.json").read_text())
    network = read_draft(folder, DraftConfig.from_dict(raw, "config.json"))
    features, block = mx.array(given["features"]), mx.array(given["block"])
    cache = network.new_cache()
    state = cache.begin(0, ROWS + block.shape[1], fixed=False)
    state = network.extend(features, 0, state)
    hidden, _ = network.forward(block / network.config.input_embedding_scale, ROWS, state)
    hidden = hidden[:, 1:]
    logits = network.shape_logits(hidden @ mx.array(given["head"]).T)[0]
    anchor, key = mx.array([int(given["anchor"])], mx.int32), mx.random.key(0)
    tokens, *_ = network.propose(hidden[0], logits, anchor, Sampling(), key)
    return {"hidden": np.array(hidden), "tokens": np.array(tokens)}


def inputs(raw: dict[str, Any]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(SEED)
    inner, size = raw["dflash_config"], raw["hidden_size"]
    width = inner.get("block_size", raw.get("block_size", 16))
    shapes = {
        "features": (1, ROWS, len(inner["target_layer_ids"]) * size),
        "block": (1, width, size),
        "head": (raw["vocab_size"], size),
    }
    arrays = {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    return arrays | {"anchor": np.array(7)}


def compare(python: str, folder: Path, raw: dict[str, Any], scratch: Path) -> str:
    given = inputs(raw)
    np.savez(scratch / "given.npz", **given)
    script = scratch / "theirs.py"
    script.write_text(THEIRS)
    command = [
        python,
        str(script),
        str(folder),
        str(scratch / "given.npz"),
        str(scratch / "out.npz"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return f"not read: {done.stderr.strip().splitlines()[-1][:90]}"
    theirs, mine = np.load(scratch / "out.npz"), ours(folder, given)
    wanted, found = theirs["hidden"], mine["hidden"]
    error = float(np.abs(wanted - found).max() / np.abs(wanted).max())
    same, count = int((theirs["tokens"] == mine["tokens"]).sum()), len(theirs["tokens"])
    verdict = "same" if error < TOLERANCE and same == count else "DIFFERENT"
    return f"{verdict}: relative error {error:.1e}, {same} of {count} tokens equal"


def main() -> None:
    python = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for index, (family, raw) in enumerate(CONFIGS.items()):
            source = cases.write_draft(scratch / f"d{index}", raw)
            out = cases.convert(source, scratch / f"o{index}", parts="draft")
            print(f"{family:45} {compare(python, out, raw, scratch)}", flush=True)
        target = cases.write_target(scratch / "target")
        for layout, write in (
            ("speculators' layout", lambda: cases.write_speculators(scratch / "s")),
            ("llama.cpp's layout", lambda: cases.write_gguf_draft(scratch / "g.gguf")),
            ("Meta's layout", lambda: cases.write_muse(scratch / "m")),
        ):
            place = scratch / layout.split("'")[0]
            out = cases.convert(target, place, write(), parts="draft")
            raw = json.loads((out / "config.json").read_text())
            print(f"{layout:45} {compare(python, out, raw, scratch)}", flush=True)


if __name__ == "__main__":
    main()
