"""The OpenAPI description of a server."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .. import __version__
from .anthropic import ClaudeRequest, CountRequest
from .anthropic_events import ClaudeReply, Count
from .openai_chat import ChatRequest
from .openai_chat_events import ChatCompletion
from .openai_responses import ResponsesRequest
from .openai_text import Completion, TextRequest
from .served import Served

WHERE = "#/components/schemas/{model}"
# A reply without a model of its own has so many forms that its schema would say nothing.
POSTS: dict[str, tuple[type[BaseModel], type[BaseModel] | None]] = {
    "/v1/chat/completions": (ChatRequest, ChatCompletion),
    "/v1/completions": (TextRequest, Completion),
    "/v1/responses": (ResponsesRequest, None),
    "/v1/messages": (ClaudeRequest, ClaudeReply),
    "/v1/messages/count_tokens": (CountRequest, Count),
}
GETS = ("/v1/models", "/v1/models/{name}", "/health", "/metrics", "/openapi.json")
ERRORS = ("400", "401", "403", "404", "408", "413", "415", "429", "500")


def document(served: Served) -> dict[str, Any]:
    """The description."""
    models = [m for pair in POSTS.values() for m in pair if m is not None]
    names, definitions = models_json_schema([(m, "validation") for m in models], ref_template=WHERE)
    paths: dict[str, Any] = {path: {"get": _get(path)} for path in GETS}
    for path, (request, reply) in POSTS.items():
        answer = names[reply, "validation"] if reply else {"type": "object"}
        paths[path] = {"post": _post(names[request, "validation"], answer)}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"dflash-mlx: {served.name}", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if served.access.keys else [],
    }


def _get(path: str) -> dict[str, Any]:
    kind = "text/plain" if path == "/metrics" else "application/json"
    operation: dict[str, Any] = {"responses": _answers({kind: {}})}
    if "{name}" in path:
        schema = {"type": "string"}
        operation["parameters"] = [
            {"name": "name", "in": "path", "required": True, "schema": schema}
        ]
    return operation


def _post(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    kinds = {"application/json": {"schema": answer}, "text/event-stream": {}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": _answers(kinds),
    }


def _answers(kinds: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"type": "object"}}}
    return {"200": {"description": "The answer", "content": kinds}} | {
        status: {"description": "Why not", "content": error} for status in ERRORS
    }
