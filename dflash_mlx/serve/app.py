"""The application: routes, and what happens to a request on the way to its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from ..errors import DFlashError, UsageError
from . import anthropic_events, openai_common
from .answer import Answer
from .anthropic import ClaudeRequest, CountRequest
from .events import AnswerResponse, Encoder, Json, Running, refusal_of
from .guard import NOTES, Desk, Door, Notes, Watched
from .guides import behind_thinking, called
from .metrics import Metrics
from .openai_chat import ChatRequest
from .openai_chat_events import ChatEncoder
from .openai_common import now
from .openai_responses import ResponsesRequest
from .openai_responses_events import ResponsesEncoder
from .openai_text import TextEncoder, TextRequest
from .openapi import document
from .parts import Outcome
from .prompt import Prompt, prepare
from .refusal import Refused, of_usage, of_validation
from .served import Line, Served
from .wanted import Wanted

AnyRequest = ChatRequest | TextRequest | ResponsesRequest | ClaudeRequest | CountRequest


@dataclass(frozen=True)
class Api:
    """How one endpoint reads requests and writes answers."""

    request: type[AnyRequest]
    encoder: Callable[[Any, Wanted, Served, int], Encoder]


APIS: Mapping[str, Api] = {
    "/v1/chat/completions": Api(ChatRequest, ChatEncoder),
    "/v1/completions": Api(TextRequest, TextEncoder),
    "/v1/responses": Api(ResponsesRequest, ResponsesEncoder),
    "/v1/messages": Api(ClaudeRequest, anthropic_events.ClaudeEncoder),
}
COUNT = "/v1/messages/count_tokens"


def application(served: Served) -> ASGIApp:
    """The server as an ASGI application."""
    paths = frozenset([*APIS, COUNT, "/v1/models", "/health", "/metrics"])
    metrics = Metrics(served, paths)

    def report(line: Line) -> None:
        metrics.count(line)
        served.report(line)

    app: ASGIApp = Desk(_routes(served, metrics), served.access, served.limits, refuse)
    if served.access.origins:
        app = CORSMiddleware(
            app,
            allow_origins=served.access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    return Watched(Door(app, served.access, refuse), report)


def _routes(served: Served, metrics: Metrics) -> Starlette:
    made = now()

    async def models(request: Request) -> Response:
        card = _card(served, made)
        ends = {"has_more": False, "first_id": served.name, "last_id": served.name}
        return Json({"object": "list", "data": [card], **ends})

    async def model(request: Request) -> Response:
        served.check(request.path_params["name"])
        return Json(_card(served, made))

    async def health(request: Request) -> Response:
        return Json({"status": "ok"})

    async def figures(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    async def description(request: Request) -> Response:
        return Json(document(served))

    async def count(request: Request) -> Response:
        _, _, prompt = await asyncio.to_thread(read, served, CountRequest, await _body(request))
        return Json({"input_tokens": len(prompt.ids)})

    return Starlette(
        routes=[
            *(Route(path, _answers(served, api), methods=["POST"]) for path, api in APIS.items()),
            Route(COUNT, count, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/", health),
            Route("/metrics", figures),
            Route("/openapi.json", description),
        ],
        exception_handlers={DFlashError: _refused, HTTPException: _refused, Exception: _refused},
    )


def _answers(served: Served, api: Api) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        body = await _body(request)
        parsed, wanted, prompt = await asyncio.to_thread(read, served, api.request, body)
        running = Running(served.engine, prompt, wanted.options)
        notes: Notes = request.scope[NOTES]

        def finished(outcome: Outcome | None, status: int) -> None:
            notes.status = status
            notes.answer = dict(outcome.stats.as_dict()) if outcome else None

        return AnswerResponse(
            running,
            Answer(served.pair, wanted, prompt),
            api.encoder(parsed, wanted, served, len(prompt.ids)),
            stream=wanted.stream,
            patience=served.limits.keep_alive_s,
            finished=finished,
            error=lambda refused: refuse(request.scope, refused),
            headers=_headers(wanted),
        )

    return answer


def read(served: Served, model: type[AnyRequest], body: bytes) -> tuple[AnyRequest, Wanted, Prompt]:
    """A body as its request, in the common form, and as ids; takes a while for long ones.

    Raises:
        Refused: it cannot be served.
    """
    try:
        parsed = model.model_validate_json(body)
        served.check(parsed.model)
        wanted = parsed.wanted(served)
        if served.think is not None:
            template = {"enable_thinking": served.think, **wanted.template}
            wanted = replace(wanted, template=template)
        if wanted.forced:
            wanted = called(served.pair, wanted)
        prompt = prepare(served.pair, wanted, served.most_characters, stable=served.marks)
        return parsed, behind_thinking(served.pair, wanted, prompt), prompt
    except ValidationError as error:
        raise of_validation(error, model) from None
    except UsageError as error:
        raise of_usage(error) from None


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind.lower() != "application/json":
        raise Refused(
            "the Content-Type is not application/json; name it so", 415, code="content_type"
        )
    return await request.body()


def _headers(wanted: Wanted) -> dict[str, str]:
    return {"x-dflash-left-out": ", ".join(wanted.left_out)} if wanted.left_out else {}


def _card(served: Served, made: int) -> dict[str, object]:
    """The model as OpenAI and Anthropic describe theirs."""
    return {
        "id": served.name,
        "object": "model",
        "created": made,
        "owned_by": "dflash-mlx",
        "type": "model",
        "display_name": served.name,
        "created_at": datetime.fromtimestamp(made, UTC).isoformat(),
        "max_context": served.pair.max_context,
    }


def refuse(scope: Scope, refused: Refused) -> Response:
    """An error in the words of the API that was called."""
    headers = dict(scope["headers"])
    claude = scope["path"].startswith("/v1/messages") or b"anthropic-version" in headers
    body = anthropic_events.error_body if claude else openai_common.error_body
    return Json(body(refused), refused.status, headers=refused.headers)


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        named = f"{request.method} {request.url.path[:80]}"
        error = Refused(
            f"{named}: {error.detail}", error.status_code, code="not_found", headers=error.headers
        )
    return refuse(request.scope, refusal_of(error))
