"""A kernel that is called like the object `mx.fast.metal_kernel` returns, and runs on the CPU.

    kernel = MetalKernel(name="double", input_names=["x"], output_names=["y"], source=...)
    (y,) = kernel(inputs=[x], output_shapes=[x.shape], output_dtypes=[x.dtype],
                  grid=(x.size, 1, 1), threadgroup=(64, 1, 1))
    kernel.report.text()

How it runs is set by Options.  A fault found in the kernel raises KernelFault unless its kind is in
`Options.allow`.
"""

from __future__ import annotations

import ctypes as c
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path

import mlx.core as mx

from . import coverage
from .abi import Buffer, Launch
from .arrays import Argument, input_argument, output_argument, to_mlx, to_numpy
from .build import build_kernel, build_runtime
from .report import Issue, Report, make_report
from .rewrite import rewrite
from .signature import Signature, Template, build_signature

ORDERS = ("asc", "desc", "random")
MAX_THREADS = 1024
# C++ that the host's compiler takes but Metal's does not.
FOREIGN = "double std goto throw try catch dynamic_cast typeid virtual"
LOCK = threading.Lock()  # the runtime has one state

Scalar = bool | int | float


@dataclass(frozen=True)
class Options:
    """How kernels run.

    checked: examine every memory access.  traffic: count it (implies checked).  coverage: count
    lines (neither of both).  order: of lanes and threadgroups, asc, desc or random (with `seed`).
    timeout: seconds of processor time.  contract: fuse a*b+c.  allow: kinds of faults that do not
    raise.
    """

    checked: bool = False
    traffic: bool = False
    coverage: bool = False
    order: str = "asc"
    seed: int = 0
    timeout: float = 120.0
    contract: bool = True
    allow: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order {self.order!r} is none of {ORDERS}")
        if self.coverage and (self.checked or self.traffic):
            raise ValueError("coverage is a build of its own, without checks and traffic")

    @property
    def mode(self) -> str:
        if self.coverage:
            return "coverage"
        return "checked" if self.checked or self.traffic else "fast"


class KernelFault(AssertionError):
    """A kernel did something wrong; `report` has it all."""

    def __init__(self, issues: Sequence[Issue], report: Report) -> None:
        super().__init__("\n".join(map(str, issues)))
        self.report = report


class MetalKernel:
    """The arguments are those of `mx.fast.metal_kernel`; also:

    options: how to run, replaceable later.  files: the `.metal` files that contain the texts, so
    that messages and coverage name their lines.
    """

    def __init__(
        self,
        name: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        source: str,
        header: str = "",
        ensure_row_contiguous: bool = True,
        atomic_outputs: bool = False,
        compile_options: dict[str, str] | None = None,
        *,
        options: Options | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        if not output_names:
            raise ValueError("[metal_kernel] Must specify at least one output.")
        mode = (compile_options or {}).get("math_mode", "safe")
        if mode not in {"safe", "relaxed", "fast"} or set(compile_options or {}) - {"math_mode"}:
            raise ValueError(f"[metal_kernel] compile options {compile_options} are not known")
        self.name, self.source, self.header = name, source, header
        self.input_names, self.output_names = list(input_names), list(output_names)
        self.row_contiguous, self.atomic_outputs = ensure_row_contiguous, atomic_outputs
        self.options = options or Options()
        self.places = (
            _place(header, f"{name} header", files),
            _place(source, name, files),
        )
        self.units: dict[Signature, str] = {}
        self.reports: list[Report] = []

    @property
    def report(self) -> Report:
        """What the latest call found and counted."""
        return self.reports[-1]

    def __call__(
        self,
        *,
        inputs: Sequence[Scalar | mx.array],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Template | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: object = None,
    ) -> list[mx.array]:
        self._check_counts(inputs, output_shapes, output_dtypes)
        arrays = [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]
        signature = build_signature(
            self.name,
            self.source,
            self.input_names,
            arrays,
            self.output_names,
            output_dtypes,
            template or (),
            self.atomic_outputs,
        )
        if verbose:
            text = signature.text(self.header, self.source)
            print(f"Generated source code for `{self.name}`:\n```\n{text}\n```")
        outputs = [
            output_argument(n, s, d, init_value)
            for n, s, d in zip(self.output_names, output_shapes, output_dtypes, strict=True)
        ]
        arguments = self._arguments(signature, arrays, outputs)
        if signature not in self.units:
            self.units[signature] = self._unit(signature)
        text = self.units[signature]
        own = frozenset(file for file, _ in self.places)
        report = run(self.name, text, arguments, grid, threadgroup, self.options, own)
        self.reports.append(report)
        raise_faults(report, self.options)
        return [
            to_mlx(a.data, s, d)
            for a, s, d in zip(outputs, output_shapes, output_dtypes, strict=True)
        ]

    def _check_counts(
        self, inputs: Sequence[object], shapes: Sequence[object], dtypes: Sequence[object]
    ) -> None:
        wanted = {"inputs": self.input_names, "output_shapes": self.output_names}
        wanted["output_dtypes"] = self.output_names
        for (word, names), given in zip(wanted.items(), (inputs, shapes, dtypes), strict=True):
            if len(names) != len(given):
                raise ValueError(
                    f"[metal_kernel] Expected `{word}` to have size {len(names)} "
                    f"but got size {len(given)}."
                )

    def _arguments(
        self, signature: Signature, arrays: list[mx.array], outputs: list[Argument]
    ) -> list[Argument]:
        views = [to_numpy(x, self.row_contiguous) for x in arrays]
        made: list[Argument] = []
        for p in signature.parameters:
            if p.kind == "output":
                made.append(outputs[p.index])
            elif p.kind != "attribute":
                made.append(input_argument(p, views[p.index]))
        return made

    def _unit(self, signature: Signature) -> str:
        (header_at, header_line), (body_at, body_line) = self.places
        buffers = iter(range(len(signature.parameters)))
        passed = [
            f"MTL_ID(F, {i}, {p.name})"
            if p.kind == "attribute"
            else f"MTL_BUFFER(F, {i}, {next(buffers)})"
            for i, p in enumerate(signature.parameters)
        ]
        return "\n".join(
            (
                f"#pragma GCC poison {FOREIGN}",
                f'#line {header_line} "{header_at}"',
                rewrite(self.header, header_at),
                '#line 1 "signature"',
                signature.prologue(),
                f'#line {body_line} "{body_at}"',
                rewrite(self.source, body_at),
                '#line 1 "signature"',
                signature.epilogue(),
                trampoline(signature.instance(), passed),
            )
        )


def _place(text: str, name: str, files: Sequence[Path]) -> tuple[str, int]:
    """The file that contains the text and the line it starts at, else (name, 1)."""
    for path in files:
        whole = path.read_text()
        at = whole.find(text) if text.strip() else -1
        if at >= 0:
            return path.name, whole.count("\n", 0, at) + 1
    return name, 1


def trampoline(function: str, passed: Sequence[str], setup: str = "") -> str:
    """The function that the runtime calls for each lane."""
    return (
        'extern "C" MTL_HIDDEN void mtl_kernel_entry(void *const *b, const mtl_ids *id) {\n'
        f"  typedef decltype({function}) F;\n  {setup}\n"
        f"  {function}({', '.join(passed)});\n}}\n"
    )


def run(
    name: str,
    text: str,
    arguments: Sequence[Argument],
    grid: Sequence[int],
    threadgroup: Sequence[int],
    options: Options,
    own: frozenset[str] = frozenset(),
) -> Report:
    """Builds and runs a translation unit that ends in a trampoline; fills the outputs.

    `own` are the file names, by #line, of the kernel's own text.
    """
    if prod(threadgroup) > MAX_THREADS:
        raise ValueError(
            f"Thread group size ({prod(threadgroup)}) is greater than  the maximum allowed "
            f"threads per threadgroup ({MAX_THREADS})."
        )
    if min(*grid, *threadgroup) < 1:
        raise ValueError(
            f"grid {tuple(grid)} and threadgroup {tuple(threadgroup)} must be positive"
        )
    if options.coverage:
        text += coverage.HOOKS
    library = build_kernel(text, options.mode, options.contract)
    launch = Launch(timeout=options.timeout, seed=options.seed, order=ORDERS.index(options.order))
    launch.checked = options.mode == "checked"
    launch.traffic = options.traffic
    launch.grid[:] = grid
    launch.group[:] = [min(a, b) for a, b in zip(threadgroup, grid, strict=True)]
    with LOCK:
        loaded = _load(library)
        if options.coverage:
            loaded.mtl_coverage_reset()
        launch.entry = c.cast(loaded.mtl_kernel_entry, c.c_void_p)
        for granule in (4, 2, 1):
            launch.buffers = buffers = _buffers(arguments)
            launch.n_buffers = len(arguments)
            launch.granule = granule
            _reset(launch)
            _runtime().mtl_run(c.byref(launch))
            if launch.status != 2:
                break
        del buffers
        sizes = {a.name: a.itemsize for a in arguments}
        names = [a.name for a in arguments]
        lines = coverage.lines_since_reset(library, loaded, own) if options.coverage else {}
        return make_report(name, launch, names, library, sizes, own, lines)


def raise_faults(report: Report, options: Options) -> None:
    bad = [i for i in report.issues if i.kind not in options.allow]
    if bad:
        raise KernelFault(bad, report)


def _reset(launch: Launch) -> None:
    for name, kind, *_ in Launch._fields_[Launch._fields_.index(("status", c.c_uint32)) :]:
        if kind is c.c_uint64 or name in {"status", "n_issues", "n_arrays"}:
            setattr(launch, name, 0)


def _buffers(arguments: Sequence[Argument]) -> c.Array[Buffer]:
    made = (Buffer * len(arguments))()
    for b, a in zip(made, arguments, strict=True):
        b.name, b.size, b.itemsize = a.name.encode(), a.data.nbytes, a.itemsize
        b.data = a.data.ctypes.data
        b.role, b.filled = int(a.output), int(a.filled)
    return made


@cache
def _runtime() -> c.CDLL:
    return c.CDLL(str(build_runtime()), mode=c.RTLD_GLOBAL)


@cache
def _load(library: Path) -> c.CDLL:
    _runtime()
    return c.CDLL(str(library))
