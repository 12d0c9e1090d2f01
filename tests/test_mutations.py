"""The faults that tests.measure.mutations seeds: the lists fit the kernels as they are."""

import pytest

from dflash_mlx.kernels.source import read
from tests.measure.faults import Fault, kernels, load, without_faults


def test_every_kernel_has_a_list():
    assert without_faults() == []


@pytest.mark.parametrize("kernel", kernels())
def test_each_fault_has_its_place(kernel: str):
    header, body = read(kernel)
    faults = load(kernel).faults
    assert len(faults) >= 20
    changed = {fault.seeded(header, body) for fault in faults}
    assert len(changed) == len(faults) and (header, body) not in changed


def test_a_fault_without_a_place_is_refused():
    for old in ("int a", "int b"):
        with pytest.raises(ValueError, match="times, expected once"):
            Fault(old, "int c").seeded("int a; int a;\n", "")
