"""Requests that are not served: what was wrong, as an HTTP status and a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import Busy, UsageError
from ..options import Options
from ..sampling import Sampling

SHOWN = 8  # names of fields listed in one message
OPTIONS = {option.name for kind in (Options, Sampling) for option in fields(kind)}
NAME = 60  # characters of a name a client made up


class Refused(UsageError):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        param: the field at fault, as a path into the request.
        code: the machine-readable reason, of OpenAI's where one fits.
        headers: to send along.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


def unsupported(param: str, given: object, hint: str) -> Refused:
    """The refusal of a value this server does not implement."""
    return Refused(
        f"{param} is {_shown(given)}, which is not supported; {hint}",
        param=param,
        code="unsupported_value",
    )


def busy(error: Busy) -> Refused:
    """The refusal where there is no room now."""
    seconds = max(1, math.ceil(error.retry_after))
    return Refused(
        f"{error} (try again in {seconds} s)",
        429,
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )


def of_usage(error: UsageError) -> Refused:
    """A `UsageError` of the library as a refusal; it names its option first, where it has one."""
    if isinstance(error, Refused):
        return error
    first = str(error).partition(" ")[0]
    return Refused(str(error), param=first if first in OPTIONS else None, code="invalid_value")


def of_validation(error: ValidationError, model: type[BaseModel]) -> Refused:
    """What pydantic found as one sentence that names every field it is about."""
    found = [
        _Fault(tuple(item["loc"]), item["type"], item["msg"])
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    unknown = [fault.path for fault in found if fault.kind == "extra_forbidden"]
    if unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        return Refused(
            f"unknown field{'s' * (len(unknown) > 1)} {', '.join(unknown[:SHOWN])}{more}; "
            "this server refuses what it would have to ignore",
            param=unknown[0],
            code="unknown_parameter",
        )
    first = found[0]
    if first.kind == "json_invalid":
        return Refused(f"the body is not valid JSON: {first.message}", code="invalid_json")
    hint = _hint(model, first.loc)
    return Refused(
        f"{first.path}: {first.message}{f'; {hint}' if hint else ''}",
        param=first.path,
        code="unsupported_value" if hint else "invalid_value",
    )


@dataclass(frozen=True)
class _Fault:
    loc: tuple[int | str, ...]
    kind: str
    message: str
    path: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", _path(self.loc))


def _path(loc: Sequence[int | str]) -> str:
    path = "".join(f"[{i}]" if isinstance(i, int) else f".{_cut(i)}" for i in loc)
    return path.lstrip(".") or "the body"


def _cut(name: str) -> str:
    # What a client made up goes into a line of the log and a header of nothing.
    name = name.encode("ascii", "replace").decode()
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= NAME else f"{name[:NAME]}..."


def _hint(model: type[BaseModel], loc: Sequence[Any]) -> str | None:
    """What the model says of a field that takes neutral values alone."""
    known = model.model_fields.get(str(loc[0])) if loc else None
    return known.description if known else None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= NAME else f"{text[:NAME]}..."
