"""What one run of a kernel found and counted, and how it reads as text."""

from __future__ import annotations

import functools
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from .abi import ISSUE_KINDS, Buffer, Counts, Launch, RawIssue

LINE = 64  # bytes
ARRAY = 1 << 31
SHIM = "metal_cpu/shim/"
CAUSES = {1001: "array index {}", 1002: "shift by {}", 1003: "division of {} by zero"}
FLOPS_PER_PRODUCT = 2 * 8 * 8 * 8


@dataclass(frozen=True)
class Issue:
    """One fault: its kind (see abi.ISSUE_KINDS, or "unwritten"), place and explanation."""

    kind: str
    file: str
    line: int
    message: str
    count: int

    def __str__(self) -> str:
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{self.file}:{self.line}: {self.kind}: {self.message}{times}"


@dataclass(frozen=True)
class Direction:
    """Traffic of one buffer in one direction; zero unless the run counted it.

    `lane_bytes`: bytes that lanes asked for.  `simd_bytes`: different bytes per request of a
    simdgroup, summed.  `request_lines`: 64-byte lines per request, summed.  `group_lines`:
    different lines per threadgroup, summed.  `grid_lines`: different lines in all.
    """

    lane_bytes: int
    simd_bytes: int
    request_lines: int
    group_lines: int
    grid_lines: int

    @property
    def coalescing(self) -> float:
        """Useful part of the lines of each request: 1 is ideal, 1/16 is one float per line."""
        return self.simd_bytes / (self.request_lines * LINE) if self.request_lines else 1.0


@dataclass(frozen=True)
class BufferReport:
    name: str
    size: int  # bytes
    read: Direction
    write: Direction

    @property
    def lines(self) -> int:
        return -(-self.size // LINE)

    @property
    def passes(self) -> float:
        """Lines read, summed over threadgroups, per line of the buffer: 1 is "read once"."""
        return self.read.group_lines / max(1, self.lines)

    @property
    def requested(self) -> float:
        """Different bytes that simdgroups asked for, per byte of the buffer."""
        return self.read.simd_bytes / max(1, self.size)


@dataclass(frozen=True)
class Report:
    """Counts of one run; `traffic` ones only if asked for."""

    kernel: str
    issues: tuple[Issue, ...]
    buffers: dict[str, BufferReport]
    threads: int
    groups: int
    barriers: int
    simd_barriers: int
    collectives: int
    matrix_flops: int
    threadgroup_bytes: int
    threadgroup_read: int
    threadgroup_written: int
    bank_conflicts: float  # turns per request of threadgroup memory, 1 is ideal
    lines_run: dict[str, dict[int, int]] = field(default_factory=dict)  # coverage

    def kinds(self) -> set[str]:
        return {issue.kind for issue in self.issues}

    def text(self) -> str:
        """A table for people."""
        head = (
            f"{self.kernel}: {self.groups} threadgroups, {self.threads} threads, "
            f"{self.barriers} barriers, {self.matrix_flops} matrix flops, "
            f"{self.threadgroup_bytes} B of threadgroup memory "
            f"(read {self.threadgroup_read}, written {self.threadgroup_written}, "
            f"{self.bank_conflicts:.2f} turns a request)"
        )
        rows = [
            f"  {b.name:<14}{b.size:>10} B  read x{b.passes:.2f} by threadgroups, "
            f"x{b.requested:.2f} asked for, coalescing {b.read.coalescing:.2f}; "
            f"written {b.write.lane_bytes} B, coalescing {b.write.coalescing:.2f}"
            for b in self.buffers.values()
        ]
        return "\n".join([head, *rows, *map(str, self.issues)])


def make_report(
    kernel: str,
    launch: Launch,
    names: list[str],
    library: Path,
    sizes: dict[str, int],
    own: frozenset[str],
    lines_run: dict[str, dict[int, int]],
) -> Report:
    """Reads the runtime's structures.

    `sizes` gives the item size of every buffer, `own` the file names of the kernel's own text.
    """
    raw = [launch.issues[i] for i in range(launch.n_issues)]
    arrays = [launch.array_names[i].decode() for i in range(launch.n_arrays)]
    pcs = {pc for r in raw for pc in (r.pc, r.other_pc) if pc}
    places = locate(library, tuple(sorted(pcs)), own)
    issues = [_issue(r, names, arrays, places, sizes, kernel) for r in raw]
    for b in (launch.buffers[i] for i in range(launch.n_buffers)):
        issues += _buffer_issues(b, kernel, {i.kind for i in issues})
    reports = {n: _buffer(launch.buffers[i]) for i, n in enumerate(names)}
    return Report(
        kernel=kernel,
        issues=tuple(issues),
        buffers=reports,
        threads=launch.threads,
        groups=launch.groups,
        barriers=launch.barriers,
        simd_barriers=launch.simd_barriers,
        collectives=launch.collectives,
        matrix_flops=launch.matrix_products * FLOPS_PER_PRODUCT,
        threadgroup_bytes=launch.threadgroup_bytes,
        threadgroup_read=launch.tg_read_bytes,
        threadgroup_written=launch.tg_write_bytes,
        lines_run=lines_run,
        bank_conflicts=launch.tg_cycles / launch.tg_requests if launch.tg_requests else 1.0,
    )


def _buffer(b: Buffer) -> BufferReport:
    return BufferReport(b.name.decode(), b.size, _direction(b.read), _direction(b.write))


def _direction(counts: Counts) -> Direction:
    return Direction(*(getattr(counts, name) for name, *_ in Counts._fields_))


def _buffer_issues(b: Buffer, kernel: str, kinds: set[str]) -> list[Issue]:
    name, found = b.name.decode(), []
    if b.modified and "write-to-input" not in kinds:
        found.append(Issue("write-to-input", kernel, 0, f"input {name} has changed", 1))
    if b.unwritten and not kinds & {"trap", "timeout"}:
        at = b.first_unwritten // b.itemsize
        text = f"{b.unwritten} bytes of {name} were never written, the first at {name}[{at}]"
        found.append(Issue("unwritten", kernel, 0, text, 1))
    return found


def _issue(
    raw: RawIssue,
    names: list[str],
    arrays: list[str],
    places: dict[int, tuple[str, int]],
    sizes: dict[str, int],
    kernel: str,
) -> Issue:
    kind = ISSUE_KINDS[raw.kind]
    file, line = places.get(raw.pc, (kernel, 0))
    if raw.file and (not line or SHIM not in raw.file.decode()):
        file, line = Path(raw.file.decode()).name, raw.line
    if raw.buffer & ARRAY:
        index = raw.buffer & ~ARRAY
        name, size = (arrays[index] if index < len(arrays) else "threadgroup memory"), 1
        where = f"byte {raw.offset} of threadgroup {name}"
    else:
        name = names[raw.buffer] if raw.buffer < len(names) else "?"
        size = sizes.get(name, 1)
        where = f"{name}[{raw.offset // size}]"
    other = places.get(raw.other_pc, ("", 0))
    return Issue(kind, file, line, _explain(kind, raw, where, name, other), max(1, raw.count))


def _explain(kind: str, raw: RawIssue, where: str, name: str, other: tuple[str, int]) -> str:
    who = f"lane {raw.lane} of threadgroup {raw.group}"
    verb = "write to" if raw.write else "read of"
    match kind:
        case "out-of-bounds" | "uninitialised-read" | "write-to-input":
            return f"{verb} {where} ({raw.size} B) by {who}"
        case "race" | "same-address-store":
            others = "several lanes" if raw.other_lane == 2**32 - 1 else f"lane {raw.other_lane}"
            first = f"{others} of threadgroup {raw.other_group} at line {other[1]}"
            return f"{verb} {where} by {who} is not ordered after the access by {first}"
        case "barrier-divergence":
            return f"lane {raw.lane} has left or waits elsewhere (threadgroup {raw.group})"
        case "simd-divergence":
            return f"only lanes {raw.mask:#010x} are here (threadgroup {raw.group})"
        case "inactive-lane":
            return f"lanes {raw.mask:#010x} read from lanes that are not here"
        case "threadgroup-limit":
            return f"{raw.size} bytes of threadgroup memory, 32768 at most"
        case "trap":
            return f"stopped in {who}: {_signal(raw)}"
        case "timeout":
            return f"{who} did not come to an end in time"
        case "misaligned":
            return f"address {raw.offset:#x} does not suit the type"
    return f"memory past the end of {name} was overwritten"


def _signal(raw: RawIssue) -> str:
    if raw.size in CAUSES:
        return CAUSES[raw.size].format(raw.offset)
    if raw.size in {signal.SIGSEGV, signal.SIGBUS}:
        return f"bad address {raw.offset & (2**64 - 1):#x}, or the stack is full"
    return "an instruction that the processor refused"


@functools.lru_cache(maxsize=256)
def locate(library: Path, pcs: tuple[int, ...], own: frozenset[str]) -> dict[int, tuple[str, int]]:
    """File and line of each code offset: the innermost frame in `own`, else outside the shim."""
    if not pcs or shutil.which("addr2line") is None:
        return {}
    command = ["addr2line", "-a", "-i", "-e", str(library), *(hex(pc) for pc in pcs)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    frames: dict[int, list[tuple[str, int]]] = {}
    pc = 0
    for row in text.splitlines():
        if row.startswith("0x"):
            pc = int(row, 16)
            frames[pc] = []
            continue
        file, _, number = row.split(" (disc")[0].rpartition(":")
        if number.isdigit() and SHIM not in file:
            frames[pc].append((Path(file).name, int(number)))
    found = {}
    for pc, stack in frames.items():
        mine = [f for f in stack if f[0] in own]
        if stack:
            found[pc] = (mine or stack)[0]
    return found
