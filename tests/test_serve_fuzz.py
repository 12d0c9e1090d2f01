"""Requests made up from the server's own description: none of them is answered with a 5xx."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import DataObject, data, sampled_from
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from dflash_mlx.engine import Engine
from dflash_mlx.serve.app import application
from dflash_mlx.serve.openapi import GETS, POSTS
from dflash_mlx.serve.served import Served

from .serving import agent_pair, in_letters

EXAMPLES = 15
CHECKS: list[Any] = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


@pytest.fixture(scope="module")
def described() -> Iterator[Any]:
    pair = agent_pair(max_context=64)
    with Engine(pair) as engine:
        app = application(Served(pair, engine, ("tiny",), in_letters(pair, 4)))
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("path", [*POSTS, *GETS])
def test_no_request_breaks_the_server(described: Any, path: str) -> None:
    operation = described[path]["post" if path in POSTS else "get"]
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]

    @given(data=data())
    @settings(
        max_examples=EXAMPLES if path in POSTS else 3,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(data: DataObject) -> None:
        mode = data.draw(sampled_from(modes if path in POSTS else modes[:1]))
        case = data.draw(operation.as_strategy(generation_mode=mode))
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"  # others lead no further
        case.call_and_validate(checks=CHECKS)

    check()
