"""Typed look-ups in a JSON object, with the file's name in every complaint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import CheckpointError

_T = TypeVar("_T")


class Fields:
    """One JSON object. A field that is null counts as missing, as in the published configs.

    Every method raises CheckpointError where a value has the wrong type or range.
    """

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw = raw
        self.source = source

    def get(self, name: str, kind: type[_T], default: Any) -> Any:
        """The field as a `kind`, or `default`; an int serves as a float, a bool never as an int."""
        value = self.raw.get(name)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(name, value, f"a {kind.__name__}")
        return value

    def need(self, name: str, kind: type[_T]) -> Any:
        """The field, which must be there."""
        if self.raw.get(name) is None:
            raise CheckpointError(f"{self.source}: the field {name!r} is missing")
        return self.get(name, kind, None)

    def positive(self, name: str, most: int = 2**24) -> int:
        """The field, an int from 1 to `most`: arrays and lists are made by it."""
        value: int = self.need(name, int)
        if value < 1:
            raise self.wrong(name, value, "a positive int")
        if value > most:
            raise self.wrong(name, value, f"at most {most}")
        return value

    def number(self, name: str) -> float:
        """The field, a number above 0."""
        value: float = self.need(name, float)
        if value <= 0:
            raise self.wrong(name, value, "a positive number")
        return value

    def wrong(self, name: str, value: object, expected: str) -> CheckpointError:
        """The error for a value that is not what was expected."""
        return CheckpointError(f"{self.source}: {name} is {value!r}, expected {expected}")
