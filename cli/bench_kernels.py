"""`dflash-mlx bench kernels`: Metal kernels beside the MLX operations that they replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .kernel_report import Report
from .options import Dtype, option
from .render import Screen

if TYPE_CHECKING:
    from dflash_mlx.bench.kernels.race import Subject, Wanted

EXAMPLES = """Examples:
  dflash-mlx bench kernels
  dflash-mlx bench kernels --op quantized_matmul_small --bits 4 --rows 16
  dflash-mlx bench kernels --op block_attention --sweep
  dflash-mlx bench kernels --small --json"""


def _chosen(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Cases", *names, help=help, metavar=metavar)


def _timing(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Timing", *names, help=help, metavar=metavar)


@dataclass(frozen=True)
class KernelOptions:
    """Which kernels, how they are timed and what is printed."""

    op: Annotated[
        list[str] | None,
        _chosen("--op", help="Time this kernel alone, repeatable", metavar="NAME"),
    ] = None
    rows: Annotated[
        list[int] | None,
        _chosen("--rows", help="Width to time, repeatable; by default 1 to 16", metavar="N"),
    ] = None
    dtype: Annotated[
        Dtype,
        _chosen("--dtype", help="float32, bfloat16 or float16", metavar="TYPE"),
    ] = "bfloat16"
    bits: Annotated[
        list[int] | None,
        _chosen("--bits", help="Of quantised weights, repeatable; by default 4 and 8", metavar="N"),
    ] = None
    small: Annotated[bool, _chosen("--small", help="Tiny sizes: whether it runs at all")] = False
    reference: Annotated[
        bool, _chosen("--reference", help="Plain MLX references for kernels; needs no Metal")
    ] = False
    threads: Annotated[
        int | None,
        _chosen("--threads", help="Most threads to a threadgroup", metavar="N"),
    ] = None
    sweep: Annotated[bool, _chosen("--sweep", help="Time every size of threadgroups")] = False
    repeat: Annotated[int, _timing("--repeat", help="Samples of a case", metavar="N")] = 20
    seconds: Annotated[
        float, _timing("--seconds", help="Most seconds to sample a case", metavar="X")
    ] = 1.0
    json: Annotated[
        bool, option("Output", "--json", help="Print a JSON object per line, a summary at last")
    ] = False
    quiet: Annotated[bool, option("Output", "--quiet", "-q", help="Show no progress")] = False

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise typer.BadParameter("--repeat needs 1 at least")
        if self.seconds <= 0:
            raise typer.BadParameter("--seconds needs more than 0")
        if self.reference and (self.sweep or self.threads is not None):
            raise typer.BadParameter("--reference has no threadgroups to choose")

    def wanted(self) -> Wanted:
        """The library's form of these options."""
        from dflash_mlx.bench.kernels.race import ROWS, Wanted
        from dflash_mlx.bench.kernels.timing import Pace

        full = Pace(repeat=self.repeat, seconds=self.seconds)
        tiny = Pace(sample=0.002, repeat=self.repeat, seconds=self.seconds, warm=0.0)
        return Wanted(
            ops=self.op or (),
            rows=self.rows or ROWS,
            dtype=self.dtype,
            bits=self.bits or (),
            threads=self.threads,
            sweep=self.sweep,
            small=self.small,
            reference=self.reference,
            pace=tiny if self.small else full,
        )


def kernels(how: KernelOptions) -> None:
    """Time the Metal kernels beside the MLX operations that they replace.

    Sizes are those of real models. Both sides take turns, and weights come from
    memory, not from a cache. Above a ratio of 1 the kernel is faster. A kernel
    whose result is wrong is not timed, and the exit code is 1. Ctrl-C keeps what
    was measured.
    """
    from dflash_mlx.bench.kernels.race import plan
    from dflash_mlx.bench.setting import need_metal, this_setting

    wanted = how.wanted()
    subjects = plan(wanted)
    if not how.reference:
        need_metal()
    report = Report(how.json, Screen(quiet=how.quiet))
    try:
        report.begin(this_setting(how.small))
        _run(subjects, wanted, report)
    except KeyboardInterrupt:
        report.interrupted = True
    report.end()
    if report.interrupted:
        raise typer.Exit(130)
    if report.bad:
        raise typer.Exit(1)


def _run(subjects: Sequence[Subject], wanted: Wanted, report: Report) -> None:
    from dflash_mlx.bench.kernels.race import run

    with report.progress(sum(len(subject.rows) for subject in subjects)):
        for subject in subjects:
            report.open(subject)
            try:
                for result in run(subject, wanted):
                    report.add(result)
            finally:
                report.close()
