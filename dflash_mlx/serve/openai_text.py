"""OpenAI's `/v1/completions`: a prompt that is continued as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from ..logprobs import TokenLogprob
from .events import event
from .fields import Reply, SamplingFields, Texts
from .openai_chat import ONE, options_of
from .openai_common import (
    StreamOptions,
    Usage,
    error_body,
    new_id,
    now,
    statistics,
    usage,
)
from .parts import Gathered, Outcome, Part, Text
from .probabilities import listed
from .refusal import Refused
from .served import Served
from .wanted import Wanted

SHORT = 16  # tokens of an answer that asks for no number, as the API has it


def _single(value: object) -> object:
    """The one prompt of a list of one, or its ids."""
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], int):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(i) is int for i in value):
        return tuple(value)
    raise PydanticCustomError("prompt", "expected one text or one list of ids")


class TextRequest(SamplingFields):
    """A request to `/v1/completions`."""

    prompt: Annotated[
        Any,
        BeforeValidator(_single),
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}
        ),
    ]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(SHORT, ge=0)
    stop: Texts | None = None
    n: Literal[1] | None = Field(None, description=ONE)
    best_of: Literal[1] | None = Field(None, description=ONE)
    echo: Literal[False] | None = Field(None, description="the prompt is not repeated")
    suffix: None = Field(None, description="write the model's own marks for it into the prompt")
    logprobs: int | None = Field(None, ge=0, le=5)
    user: str | None = None

    def wanted(self, served: Served) -> Wanted:
        """The request in its common form.

        Raises:
            UsageError: a value does not fit.
        """
        tokens = SHORT if self.max_tokens is None else self.max_tokens
        options = options_of(self, served, tokens, self.stop)
        return Wanted(
            options=replace(options, logprobs=self.logprobs),
            prompt=self.prompt,
            stream=bool(self.stream),
            usage=bool(self.stream_options and self.stream_options.include_usage),
            statistics=bool(self.x_dflash),
        )


class TextChoice(Reply):
    """The one answer of a reply."""

    index: Literal[0] = 0
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: Literal["stop", "length"] | None


class Completion(Reply):
    """A reply of `/v1/completions`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None
    x_dflash: dict[str, Any] | None = None


class TextEncoder:
    """Writes an answer as OpenAI's completions API does."""

    keep_alive = ": keep-alive\n\n"

    def __init__(self, body: TextRequest, wanted: Wanted, served: Served, prompt_tokens: int):
        self._wanted, self._served = wanted, served
        self._id, self._created = new_id("cmpl-"), now()
        self._told = 0  # characters

    def begin(self) -> Iterator[str]:
        """Nothing."""
        yield from ()

    def part(self, part: Part) -> Iterator[str]:
        """A piece of text."""
        assert isinstance(part, Text)
        choice = self._choice(part.text, None, part.logprobs)
        self._told += len(part.text)
        yield event(self._reply([choice]))

    def end(self, outcome: Outcome) -> Iterator[str]:
        """Why it ended, the counts if they were asked for, and `[DONE]`."""
        last = self._choice("", outcome.reason)
        yield event(self._reply([last], None if self._wanted.usage else outcome))
        if self._wanted.usage:
            counts = {"usage": usage(outcome).model_dump()}
            yield event(self._reply([], outcome) | counts)
        yield "data: [DONE]\n\n"

    def fail(self, error: Refused) -> Iterator[str]:
        """An error where a chunk would be; no `[DONE]` follows."""
        yield event(error_body(error))

    def whole(self, parts: Sequence[Part], outcome: Outcome) -> dict[str, object]:
        """A `text_completion`."""
        gathered = Gathered.of(parts)
        choice = self._choice(gathered.text, outcome.reason, gathered.logprobs)
        return self._reply([choice], outcome) | {"usage": usage(outcome).model_dump()}

    def _reply(
        self, choices: list[TextChoice], outcome: Outcome | None = None
    ) -> dict[str, object]:
        reply = Completion(
            id=self._id, created=self._created, model=self._served.name, choices=choices
        )
        fields = reply.model_dump(exclude={"usage", "x_dflash"})
        if outcome is not None and self._wanted.statistics:
            fields["x_dflash"] = statistics(self._served.pair, outcome)
        return fields

    def _choice(self, text: str, reason: Any, tokens: Sequence[TokenLogprob] = ()) -> TextChoice:
        known = None
        if self._wanted.options.logprobs is not None:
            known = listed(self._served.pair.tokenizer, tokens, self._told)
        return TextChoice(text=text, logprobs=known, finish_reason=reason)
