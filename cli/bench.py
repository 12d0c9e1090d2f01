"""`dflash-mlx bench`: how fast things are on this machine; a command for each kind of benchmark."""

from __future__ import annotations

import typer

from .bench_kernels import EXAMPLES as KERNELS_EXAMPLES
from .bench_kernels import kernels
from .options import flags

bench = typer.Typer(
    name="bench",
    help="Measure speed on this machine.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench.command(epilog=KERNELS_EXAMPLES)(flags(kernels))


@bench.callback()
def start() -> None:
    """Keeps `kernels` a command of its own while it is the only one."""
