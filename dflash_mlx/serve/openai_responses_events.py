"""OpenAI's `/v1/responses`: answers, whole and as events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..logprobs import TokenLogprob
from .events import event
from .fields import Model
from .openai_common import new_id, now, statistics
from .openai_responses import ResponsesRequest
from .parts import Arguments, Call, Outcome, Part, Thinking
from .probabilities import detailed
from .refusal import Refused
from .served import Served
from .wanted import Wanted

# What a reply repeats of its request.
REPEATED = {
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "temperature",
    "top_p",
    "user",
}


@dataclass
class _Open:
    """The item that is being written."""

    item: dict[str, Any]
    holds: str  # the field with the item's text
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class ResponsesEncoder:
    """Writes an answer as OpenAI's Responses API does; `whole` is the last event's response."""

    keep_alive = ": keep-alive\n\n"

    def __init__(self, body: ResponsesRequest, wanted: Wanted, served: Served, prompt_tokens: int):
        self._body, self._wanted, self._served = body, wanted, served
        self._id, self._created = new_id("resp_"), now()
        self._output: list[dict[str, Any]] = []
        self._open: _Open | None = None
        self._number = -1

    def begin(self) -> Iterator[str]:
        """The empty response."""
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))

    def part(self, part: Part) -> Iterator[str]:
        """A delta, in an item of its kind."""
        if isinstance(part, Call):
            yield from self._close()
            yield from self._begin(self._call(part))
        elif isinstance(part, Arguments):
            custom = self._opened.item["type"] == "custom_tool_call"
            name = "custom_tool_call_input" if custom else "function_call_arguments"
            yield self._event(f"response.{name}.delta", **self._at(), **self._add(part.text))
        elif isinstance(part, Thinking):
            yield from self._ensure("reasoning")
            delta = self._add(part.text)
            yield self._event("response.reasoning_text.delta", **self._in(), **delta)
        else:
            yield from self._ensure("message")
            known = self._logprobs(part.logprobs)
            self._opened.logprobs += known
            delta = self._add(part.text)
            yield self._event("response.output_text.delta", **self._in(), **delta, logprobs=known)

    def end(self, outcome: Outcome) -> Iterator[str]:
        """The response with all items and its counts."""
        yield from self._close()
        status = "incomplete" if outcome.reason == "length" else "completed"
        yield self._event(f"response.{status}", response=self._finished(status, outcome))

    def fail(self, error: Refused) -> Iterator[str]:
        """The response as failed."""
        response = self._response("failed")
        kinds = {429: "rate_limit_exceeded", 500: "server_error"}
        response["error"] = {
            "code": kinds.get(error.status, "invalid_prompt"),
            "message": str(error),
        }
        yield self._event("response.failed", response=response)

    def whole(self, parts: Sequence[Part], outcome: Outcome) -> dict[str, object]:
        """A response."""
        for part in parts:
            for _ in self.part(part):
                pass
        for _ in self._close():
            pass
        status = "incomplete" if outcome.reason == "length" else "completed"
        return self._finished(status, outcome)

    @property
    def _opened(self) -> _Open:
        assert self._open is not None
        return self._open

    def _ensure(self, kind: str) -> Iterator[str]:
        if self._open is not None and self._open.item["type"] == kind:
            return
        yield from self._close()
        if kind == "reasoning":
            item = {"id": new_id("rs_"), "type": kind, "summary": [], "content": []}
            yield from self._begin(_Open(item | {"encrypted_content": None}, "content"))
            return
        item = {"id": new_id("msg_"), "type": kind, "role": "assistant", "content": []}
        yield from self._begin(_Open(item, "content"))
        yield self._event("response.content_part.added", **self._in(), part=_text(""))

    def _call(self, part: Call) -> _Open:
        tool = self._wanted.tool(part.name)
        item: dict[str, Any] = {
            "id": new_id("fc_"),
            "type": "function_call",
            "call_id": part.id,
            "name": (tool and tool.alias) or part.name,
        }
        if tool and tool.namespace:
            item["namespace"] = tool.namespace
        if tool and tool.kind == "custom":
            return _Open(item | {"id": new_id("ctc_"), "type": "custom_tool_call"}, "input")
        return _Open(item, "arguments")

    def _begin(self, opened: _Open) -> Iterator[str]:
        self._open = opened
        empty: object = [] if opened.holds == "content" else ""
        item = opened.item | {opened.holds: empty, "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=len(self._output), item=item)

    def _close(self) -> Iterator[str]:
        opened = self._open
        if opened is None:
            return
        text, kind = opened.text, opened.item["type"]
        value: object = text
        if kind == "message":
            part = _text(text, opened.logprobs)
            value = [part]
            done = {"text": text, "logprobs": opened.logprobs}
            yield self._event("response.output_text.done", **self._in(), **done)
            yield self._event("response.content_part.done", **self._in(), part=part)
        elif kind == "reasoning":
            value = [{"type": "reasoning_text", "text": text}]
            yield self._event("response.reasoning_text.done", **self._in(), text=text)
        elif kind == "custom_tool_call":
            yield self._event("response.custom_tool_call_input.done", **self._at(), input=text)
        else:
            done = {"name": opened.item["name"], "arguments": text}
            yield self._event("response.function_call_arguments.done", **self._at(), **done)
        item = opened.item | {opened.holds: value, "status": "completed"}
        yield self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._open = None

    def _at(self) -> dict[str, Any]:
        """The item that is being written."""
        return {"item_id": self._opened.item["id"], "output_index": len(self._output)}

    def _in(self) -> dict[str, Any]:
        """The text in it."""
        return self._at() | {"content_index": 0}

    def _add(self, text: str) -> dict[str, str]:
        self._opened.texts.append(text)
        return {"delta": text}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        return detailed(self._served.pair.tokenizer, tokens)

    def _event(self, kind: str, **fields: object) -> str:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **fields}, kind)

    def _finished(self, status: str, outcome: Outcome) -> dict[str, Any]:
        stats = outcome.stats
        response = self._response(status)
        response["usage"] = {
            "input_tokens": stats.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": stats.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": stats.generated_tokens,
            "output_tokens_details": {"reasoning_tokens": outcome.thought},
            "total_tokens": stats.prompt_tokens + stats.generated_tokens,
        }
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = now()
        if self._wanted.statistics:
            response["x_dflash"] = statistics(self._served.pair, outcome)
        return response

    def _response(self, status: str) -> dict[str, Any]:
        repeated = self._body.model_dump(mode="json", include=REPEATED)
        named: Any = {"tool_choice": self._body.tool_choice, "text": self._body.text}
        shown = {
            name: value.model_dump(by_alias=True, exclude_none=True)
            if isinstance(value, Model)
            else value
            for name, value in named.items()
        }
        sampling = self._wanted.options.sampling
        tools = [
            tool.model_dump(mode="json", exclude_none=True)
            for tool in self._body.tools or ()
            if tool.type not in self._wanted.left_out
        ]
        return repeated | {
            "tool_choice": shown["tool_choice"] or "auto",
            "text": {"format": {"type": "text"}} | (shown["text"] or {}),
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._served.name,
            "output": list(self._output),
            "error": None,
            "incomplete_details": None,
            "usage": None,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "tools": tools,
            "parallel_tool_calls": not self._wanted.one_call,
            "reasoning": {"effort": None, "summary": None}
            | (self._body.reasoning.model_dump(include={"effort"}) if self._body.reasoning else {}),
            "truncation": "disabled",
            "previous_response_id": None,
            "background": False,
            "store": False,
        }


def _text(text: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
