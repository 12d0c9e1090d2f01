"""Seeds faults into the kernels and counts those that the kernels' tests find.

    python -m tests.measure.mutations [op ...] [--json]

For every fault in faults/<op>.py the fast tests of that kernel run, until one fails, on a text with
that fault; first they have to pass without one. A fault that is equivalent (it changes no
behaviour, the list says why) is expected to survive and does not count. Exit status 1 if fewer than
95 % of the others were caught, if a list contradicts what happens, or if a kernel has no list. It
takes seconds for a fault that is caught and a minute for one that survives.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .faults import Fault, Faults, kernels, load, without_faults
from .seeded import DOES_NOT_COMPILE

ROOT = Path(__file__).parents[2]
WANTED = 0.95  # caught of those that change behaviour
LIMIT = 900  # seconds for the tests of a kernel; a fault may make it run for ever
COLUMNS = ("seeded", "equivalent", "caught", "survived")


@dataclass
class Count:
    """What became of the faults of one kernel.

    wrong: faults that did not compile, or were called equivalent and are not.
    """

    kernel: str
    seeded: int = 0
    equivalent: int = 0
    caught: int = 0
    survived: int = 0
    survivors: list[Fault] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def enough(self) -> bool:
        return not self.wrong and self.caught >= WANTED * (self.caught + self.survived)


def pytest(listed: Faults, number: int | None, folder: str) -> int:
    """Exit status of a kernel's tests, with a fault or without; 1 if they crash or never end.

    What is built goes to `folder`: nobody needs it again.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not slow and not network and not parity", *listed.tests]
    if number is not None:
        command += ["-p", "tests.measure.seeded", "--fault", listed.kernel, str(number)]
    environment = os.environ | {"TMPDIR": folder}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return 1
    if done.returncode < 0:  # a signal
        return 1
    if done.returncode not in (0, 1, DOES_NOT_COMPILE):
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.returncode


def count(kernel: str, folder: str) -> Count:
    """Seeds all faults of a kernel, one after the other."""
    listed, total = load(kernel), Count(kernel)
    if pytest(listed, None, folder) != 0:
        total.wrong.append("the tests fail without a fault")
        return total
    for number, fault in enumerate(listed.faults):
        total.seeded += 1
        status = pytest(listed, number, folder)
        if status == DOES_NOT_COMPILE:
            total.wrong.append(f"does not compile: {shown(fault)}")
        elif fault.equivalent:
            total.equivalent += 1
            if status:
                total.wrong.append(f"caught, though called equivalent: {shown(fault)}")
        elif status:
            total.caught += 1
        else:
            total.survived += 1
            total.survivors.append(fault)
    return total


def shown(fault: Fault) -> str:
    return f"{fault.old!r} -> {fault.new!r}"


def report(found: Count, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(found)), flush=True)
        return
    numbers = asdict(found)
    print(f"{found.kernel:<24}" + "".join(f"{numbers[c]:>11}" for c in COLUMNS), flush=True)
    for fault in found.survivors:
        print(f"  survived: {shown(fault)}", flush=True)
    for text in found.wrong:
        print(f"  {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="op", help=f"of {', '.join(kernels())}")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    chosen = options.ops or kernels()
    missing = sorted(set(chosen) & set(without_faults()) or set(chosen) - set(kernels()))
    if missing:
        sys.exit(f"no faults for {', '.join(missing)}: expected tests/measure/faults/<op>.py")
    if not options.json:
        print(f"{'kernel':<24}" + "".join(f"{c:>11}" for c in COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        counts = []
        for kernel in chosen:
            counts.append(count(kernel, folder))
            report(counts[-1], options.json)
    sys.exit(0 if all(c.enough for c in counts) else 1)


if __name__ == "__main__":
    main()
