"""`dflash-mlx bench`: how fast things are on this machine; a command for each kind of benchmark."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from .bench_compare import EXAMPLES as COMPARE_EXAMPLES
from .bench_compare import compare
from .bench_context import EXAMPLES as CONTEXT_EXAMPLES
from .bench_context import context
from .bench_kernels import EXAMPLES as KERNELS_EXAMPLES
from .bench_kernels import kernels
from .bench_run import EXAMPLES as RUN_EXAMPLES
from .bench_run import run
from .options import flags

EXAMPLES = """Examples:
  dflash-mlx bench gsm8k
  dflash-mlx bench gsm8k mt-bench -m Qwen3-4B --bits 4 --block 8,16 --html report.html
  dflash-mlx bench --data prompts.jsonl --json run.json
  dflash-mlx bench compare before.json after.json
  dflash-mlx bench run --help"""


class Group(TyperGroup):
    """Takes `run` for granted: `bench gsm8k` is `bench run gsm8k`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from dflash_mlx.bench.data.table import SETS

        rows = "\n".join(f"  {known.name:12} {known.title}" for known in SETS)
        self.epilog = f"Sets:\n{rows}\n\n{EXAMPLES}"
        super().format_help(ctx, formatter)


bench = typer.Typer(
    name="bench",
    cls=Group,
    help="Measure speed on this machine: of decoding, on sets of prompts, or of kernels.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench.command(epilog=RUN_EXAMPLES)(flags(run))
bench.command(epilog=CONTEXT_EXAMPLES)(flags(context))
bench.command(epilog=COMPARE_EXAMPLES)(flags(compare))
bench.command(epilog=KERNELS_EXAMPLES)(flags(kernels))
