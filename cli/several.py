"""Commands that several processes run together, started by `mlx.launch`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dflash_mlx.errors import DFlashError

from .options import option

if TYPE_CHECKING:
    from dflash_mlx.loading import Pair
    from dflash_mlx.ranks import Ranks


@dataclass(frozen=True)
class ShardOptions:
    """How processes share a target."""

    shard: Annotated[
        Literal["tensor", "pipeline", "off"] | None,
        option(
            "Several processes",
            "--shard",
            help="Under mlx.launch: tensor shares every layer of the target, pipeline its layers, "
            "off takes no notice of others; tensor by default",
            metavar="HOW",
        ),
    ] = None

    def join(self, waits: bool = True) -> Ranks:
        """The processes, this one among them.

        Args:
            waits: on rank 0 Ctrl-C waits until all can be told. A server has its own way to end.
        """
        from dflash_mlx.ranks import join

        ranks = join(self.shard)
        if ranks.size > 1:
            # Ctrl-C reaches every process of a terminal; the others hear of it from rank 0.
            if not ranks.leads:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            elif waits:
                signal.signal(signal.SIGINT, ranks.interrupt)
        return ranks


def follow(ranks: Ranks, *loads: Callable[[], Pair]) -> None:
    """What a rank does that does not lead: load each pair in turn and do what rank 0 does with it.

    Its errors are printed by rank 0, which has them too.
    """
    from dflash_mlx.several import follow

    try:
        ranks.together(lambda: None)  # rank 0 reads what it was asked
        for load in loads:
            pair = load()
            wire_memory()
            follow(pair)
    except DFlashError:
        raise typer.Exit(1) from None


def wire_memory() -> None:
    """Let macOS keep the weights resident, as far as it recommends."""
    import mlx.core as mx

    limit = mx.device_info().get("max_recommended_working_set_size")
    if mx.metal.is_available() and limit:
        mx.set_wired_limit(int(limit))


def read_line() -> str:
    """A message from stdin where that is no terminal: `mlx.launch` passes on what is typed.

    Raises:
        EOFError: nothing comes any more.
    """
    typer.echo("> ", err=True, nl=False)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
