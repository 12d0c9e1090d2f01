"""Tables of TOML to and from dataclasses, every value checked against its field's type."""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..errors import UsageError

T = TypeVar("T")


def parse(kind: type[T], raw: dict[str, Any], where: str) -> T:
    """A dataclass from a table of TOML, every value checked against its type."""
    hints = get_type_hints(kind)
    if unknown := sorted(raw.keys() - hints.keys()):
        raise UsageError(f"{where}: unknown setting {unknown[0]!r}; known are {', '.join(hints)}")
    values = {name: _value(hints[name], value, f"{where}: {name}") for name, value in raw.items()}
    try:
        return kind(**values)
    except TypeError:
        missing = [name for name in ("target", "data", "model", "prompts") if name in hints]
        raise UsageError(f"{where}: {' or '.join(missing)} is missing") from None


def to_toml(tables: dict[str, Any]) -> str:
    """Tables of plain values as TOML; what is None is left out."""
    lines: list[str] = []
    for name, table in tables.items():
        lines.append(f"\n[{name}]")
        # JSON's strings, numbers, booleans and lists are TOML's, too.
        lines += [f"{k} = {json.dumps(v)}" for k, v in table.items() if v is not None]
    return "\n".join(lines) + "\n"


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise UsageError(f"{where} is {value!r}, expected a table")
        return parse(hint, value, where)  # type: ignore[arg-type]
    if isinstance(hint, UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_value(get_args(hint)[0], one, where) for one in value)
    if hint is float and type(value) is int:
        return float(value)
    if get_origin(hint) is tuple or type(value) is not hint:
        raise UsageError(f"{where} is {value!r}, expected {_name(hint)}")
    return value


def _name(hint: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint, "a list of numbers")
