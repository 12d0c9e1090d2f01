"""Many requests decoded with one pair, in one model thread; `engine.py` has the loop."""

from .engine import Engine
from .options import Counters, EngineOptions
from .prefixes import Prefixes
from .ticket import Ticket

__all__ = ["Counters", "Engine", "EngineOptions", "Prefixes", "Ticket"]
