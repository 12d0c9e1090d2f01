"""How often verifying 16 rows at once flips a greedy token, and what `verify` calls it.

    python -m tests.measure.flips [--positions 512] [--width 16] [--dtype bfloat16] [--json]

Every family of the tests, reduced and with random weights, reads a random text twice: row by row,
as plain decoding does, and in blocks. Where the most probable tokens differ, `ties.judge` has to
call it a tie. The embedded pair does the same on texts of its own.

MLX's CPU adds up a product in bfloat16 in one order whatever the number of rows, so nothing can
flip there, and it has no products of experts in bfloat16 at all. A GPU adds up in float32, in an
order that depends on the number of rows, and rounds the sum. By default the linear layers and the
experts are computed in this way here, through the BLAS; `--native` leaves it to MLX and skips
what it cannot compute. On a GPU use `--native`: there it measures the kernels themselves.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.switch_layers import SwitchLinear

from dflash_mlx.generation import rounds
from dflash_mlx.loading import cast_floating, load
from dflash_mlx.options import Options
from dflash_mlx.targets import target_for
from dflash_mlx.ties import Position, judge, read_twice, tolerance
from tests.families import FAMILIES, build, prompt_of

from . import FAST_BLAS

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
EMBEDDED_PROMPTS = (
    "Tell me about the history of bread.",
    "Write a short story about a lighthouse keeper.",
    "List ten animals and say where each of them lives.",
    "How does a bicycle stay upright?",
)
PROMPT = 24  # tokens


class Rounded(nn.Module):
    """A layer whose product is added up in float32 and rounded once, as GPUs do it.

    The weights come in under their own names: some models look at them.
    """

    def __init__(self, layer: nn.Linear | SwitchLinear) -> None:
        super().__init__()
        for name, value in layer.items():
            self[name] = value
        self._layer = layer

    def __call__(self, rows: mx.array, *more: Any, **named: Any) -> mx.array:
        return self._layer(rows.astype(mx.float32), *more, **named).astype(rows.dtype)


def rounded(model: Any) -> Any:
    """Let the linear layers and experts of `model` add up in float32."""
    layers = tree_map(_rounded, model.leaf_modules(), is_leaf=nn.Module.is_module)
    model.update_modules(layers)
    return model


def _rounded(layer: nn.Module) -> nn.Module:
    return Rounded(layer) if type(layer) in (nn.Linear, SwitchLinear) else layer


def summary(name: str, dtype: mx.Dtype, texts: Sequence[list[Position]]) -> dict[str, Any]:
    """Flips of some texts and the verdicts on them; the tolerance is each text's own."""
    row = {"family": name, "positions": 0, "flips": 0, "ties": 0, "bugs": 0}
    row |= {"largest_gap": 0.0, "largest_noise": 0.0, "largest_logit": 0.0}
    for positions in texts:
        allowed = tolerance(positions, dtype)
        gaps = [p.best[1] - p.wide[1] for p in positions if p.wide[0] != p.best[0]]
        # A gap of 0 is a tie that the first of equal tokens won in one reading only.
        verdicts = ["tie" if gap == 0 else judge(gap, allowed) for gap in gaps]
        row["positions"] += len(positions)
        row["flips"] += len(gaps)
        row["ties"] += verdicts.count("tie")
        row["bugs"] += verdicts.count("bug")
        row["largest_gap"] = max([row["largest_gap"], *gaps])
        row["largest_noise"] = max(row["largest_noise"], *(p.noise for p in positions))
        row["largest_logit"] = max(row["largest_logit"], *(abs(p.best[1]) for p in positions))
    return row


def of_family(family: str, dtype: mx.Dtype, count: int, width: int, native: bool) -> dict[str, Any]:
    model = build(family)
    cast_floating(model, dtype)  # as `load` does it
    target = target_for(model if native else rounded(model))
    text = prompt_of(count, seed=3)
    try:
        return summary(family, dtype, [read_twice(target, prompt_of(PROMPT), text, width)])
    except RuntimeError as error:
        if "GatherMM" not in str(error):
            raise
        return {"family": family, "skipped": str(error)}


def of_embedded(dtype: str, count: int, width: int, native: bool) -> dict[str, Any]:
    pair = load(dtype=dtype, speculate=False, quiet=True)
    if not native:
        rounded(pair.target.model)
    texts = []
    for prompt in EMBEDDED_PROMPTS:
        message = [{"role": "user", "content": prompt}]
        ids = list(pair.tokenizer.apply_chat_template(message, add_generation_prompt=True))
        options = Options(max_tokens=count // len(EMBEDDED_PROMPTS))
        text = [token for round_ in rounds(pair, ids, options) for token in round_.tokens]
        texts.append(read_twice(pair.target, ids, text, width))
    return summary(pair.name, DTYPES[dtype], texts)


def show(row: dict[str, Any]) -> None:
    if "skipped" in row:
        print(f"{row['family']:16} skipped: {row['skipped']}", flush=True)
        return
    share = 100 * row["flips"] / row["positions"]
    print(
        f"{row['family']:16} {row['flips']:4} of {row['positions']} flipped ({share:.2f} %), "
        f"{row['ties']} ties, {row['bugs']} bugs; noise up to {row['largest_noise']:.3g}, "
        f"flipped gaps up to {row['largest_gap']:.3g}, logits up to {row['largest_logit']:.3g}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--families", default=",".join(FAMILIES), help="comma-separated")
    parser.add_argument("--embedded", type=int, default=256, help="positions, 0 for none")
    parser.add_argument("--native", action="store_true", help="leave products to MLX")
    parser.add_argument("--json", action="store_true", help="one JSON document on the last line")
    args = parser.parse_args()
    rows = []
    for family in filter(None, args.families.split(",")):
        rows.append(of_family(family, DTYPES[args.dtype], args.positions, args.width, args.native))
        show(rows[-1])
    if args.embedded:
        rows.append(of_embedded(args.dtype, args.embedded, args.width, args.native))
        show(rows[-1])
    if args.json:
        products = "native" if args.native else "float32, rounded"
        more = {"openblas": FAST_BLAS, "mlx": mx.__version__, "device": str(mx.default_device())}
        print(json.dumps({**vars(args), "products": products, **more, "rows": rows}))


if __name__ == "__main__":
    main()
