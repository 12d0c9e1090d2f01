"""What a Mac says of its power and heat: a machine that slows itself down measures that."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field

PMSET = "/usr/bin/pmset"


@dataclass(frozen=True)
class Power:
    """The state of a moment.

    Attributes:
        source: as macOS names it: AC Power, Battery Power.
        charge: of the battery in per cent; None where there is none.
        low_power: whether low power mode is on; None where there is none.
        limits: what macOS has recorded of heat: speed limits in per cent, warning levels; empty
            where nothing was.
    """

    source: str | None
    charge: int | None
    low_power: bool | None
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def throttled(self) -> bool:
        """Whether the machine says that it holds back."""
        held = any(
            value > 0 if "warning" in name.lower() else value < 100
            for name, value in self.limits.items()
            if "limit" in name.lower() or "warning" in name.lower()
        )
        return held or bool(self.low_power)


def power() -> Power | None:
    """The state now; None where the system does not say."""
    if sys.platform != "darwin":
        return None
    try:
        return read_power(_pmset("batt"), _pmset("therm"), _pmset("live"))
    except (OSError, subprocess.SubprocessError):
        return None


def read_power(batt: str, therm: str, live: str) -> Power:
    """From what `pmset -g batt`, `pmset -g therm` and `pmset -g live` print."""
    source = re.search(r"drawing from '([^']+)'", batt)
    charge = re.search(r"(\d+)%", batt)
    low = re.search(r"^\s*lowpowermode\s+(\d)", live, re.MULTILINE)
    limits = re.findall(r"^\s*([A-Za-z][\w ]*?)\s*[=:]\s*(\d+)\s*$", therm, re.MULTILINE)
    return Power(
        source=source[1] if source else None,
        charge=int(charge[1]) if charge else None,
        low_power=low[1] == "1" if low else None,
        limits={name: int(value) for name, value in limits},
    )


def _pmset(what: str) -> str:
    done = subprocess.run(
        [PMSET, "-g", what], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout
