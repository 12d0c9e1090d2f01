"""Peak memory and time of a conversion, beside the largest file it reads and writes.

    python -m tests.measure.convert_memory [--hidden 2048] [--layers 8] [--shard 256]

A llama with random bfloat16 weights is written in shards of so many MiB, converted to 4 bits in
files of at most as many, in a process of its own; the peak is MLX's count of its arrays. The last
line is one JSON document.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from dflash_mlx import shards
from dflash_mlx.convert.recipe import TargetRecipe
from dflash_mlx.convert.run import Request, prepare

MIB = 2**20


def write_source(folder: Path, hidden: int, layers: int, limit: int) -> None:
    config = {
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 3 * hidden,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 256,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32000,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    model = llama.Model(llama.ModelArgs.from_dict(config))
    arrays = {n: a.astype(mx.bfloat16) for n, a in tree_flatten(model.parameters())}
    del model
    parts = shards.split(shards.lazy(arrays), limit)
    index = shards.index(parts)
    for name, part in parts.items():
        shards.write(folder / name, part, lambda _: None)
    if index is not None:
        (folder / "model.safetensors.index.json").write_bytes(index)


def convert(source: Path, out: Path, limit: int) -> None:
    """Runs in a process of its own."""
    began = time.perf_counter()
    recipe = TargetRecipe(bits=4)
    job = prepare(Request(str(source), out, parts="target", target=recipe, limit=limit))
    largest = max(job.plans[0].sizes.values())
    job.write(lambda *_: None)
    read = max(path.stat().st_size for path in source.glob("*.safetensors"))
    found = {
        "read_mib": round(sum(p.stat().st_size for p in source.glob("*.safetensors")) / MIB),
        "largest_read_mib": round(read / MIB),
        "largest_written_mib": round(largest / MIB),
        "mlx_peak_mib": round(mx.get_peak_memory() / MIB),
        "mlx_peak_to_largest": round(mx.get_peak_memory() / max(read, largest), 2),
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--shard", type=int, default=256)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "source", Path(name) / "out"
        write_source(source, args.hidden, args.layers, args.shard * MIB)
        call = f"convert(Path({str(source)!r}), Path({str(out)!r}), {args.shard * MIB})"
        code = f"from tests.measure.convert_memory import *; {call}"
        subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    main()
