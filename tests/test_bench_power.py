"""What `pmset` prints, read."""

from dflash_mlx.bench.power import Power, read_power

LAPTOP = """Now drawing from 'Battery Power'
 -InternalBattery-0 (id=22020195)\t87%; discharging; 6:12 remaining present: true
"""
DESKTOP = "Now drawing from 'AC Power'\n"
COOL = """Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
Note: No CPU power status has been recorded
"""
HOT = """2025-07-01 10:11:12 +0200 CPU Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 8
\tCPU_Speed_Limit \t= 62
"""
LIVE = "System-wide power settings:\nCurrently in use:\n standby 1\n lowpowermode         1\n"


def test_a_laptop_on_its_battery() -> None:
    found = read_power(LAPTOP, COOL, LIVE)
    assert found == Power("Battery Power", 87, True, {})
    assert found.throttled


def test_a_desktop() -> None:
    found = read_power(DESKTOP, COOL, LIVE.replace("1\n", "0\n"))
    assert found == Power("AC Power", None, False, {})
    assert not found.throttled


def test_a_machine_that_holds_back() -> None:
    found = read_power(DESKTOP, HOT, "")
    assert found.limits == {
        "CPU_Scheduler_Limit": 100,
        "CPU_Available_CPUs": 8,
        "CPU_Speed_Limit": 62,
    }
    assert found.low_power is None
    assert found.throttled


def test_a_warning_is_none_at_level_zero() -> None:
    assert not read_power(DESKTOP, "Thermal Warning Level = 0\n", "").throttled
    assert read_power(DESKTOP, "Thermal Warning Level = 1\n", "").throttled


def test_nothing_readable_is_unknown() -> None:
    assert read_power("", "", "") == Power(None, None, None, {})
