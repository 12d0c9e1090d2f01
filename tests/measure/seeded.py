"""A pytest plugin that seeds one fault into a kernel.

    pytest -p tests.measure.seeded --fault KERNEL NUMBER

NUMBER counts from 0 in that list. The text is changed as it is read; no file is.
"""

from __future__ import annotations

from functools import cache

import pytest

from dflash_mlx.kernels import source
from tests.metal_cpu.build import KernelBuildError

from .faults import load

DOES_NOT_COMPILE = 20  # exit status


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault", nargs=2, metavar=("KERNEL", "NUMBER"), help="seed it")


def pytest_configure(config: pytest.Config) -> None:
    kernel, number = config.getoption("--fault")
    fault, read = load(kernel).faults[int(number)], source.read

    @cache
    def faulty(op: str) -> tuple[str, str]:
        return fault.seeded(*read(op)) if op == kernel else read(op)

    source.read = faulty


def pytest_exception_interact(call: pytest.CallInfo) -> None:
    if call.excinfo and isinstance(call.excinfo.value, KernelBuildError):
        pytest.exit(f"the fault does not compile: {call.excinfo.value}", DOES_NOT_COMPILE)
