"""What the request models of all APIs share.

A field is declared if it is honoured, if it only annotates, or if some of its values change
nothing; such a field's type is those values, and its description says why there are no others.
Everything else is unknown and refused.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from ..sampling import Sampling

TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
# Of parts: cache marks, sources and probabilities say nothing a model reads.
ANNOTATIONS = {"type", "cache_control", "annotations", "citations", "logprobs"}


class Model(BaseModel):
    """A request or a part of one: no unknown fields, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Reply(BaseModel):
    """An answer or a part of one."""

    model_config = ConfigDict(extra="forbid")


def joined(value: object) -> object:
    """A list of text parts as one text."""
    if not isinstance(value, list):
        return value
    return "".join(_text(part, index) for index, part in enumerate(value))


def _text(part: object, index: int) -> str:
    if not isinstance(part, dict):
        raise PydanticCustomError("part", "part {index} is not an object", {"index": index})
    kind = part.get("type")
    name = TEXTS.get(kind) if isinstance(kind, str) else None
    if name is None:
        raise PydanticCustomError(
            "part",
            "part {index} has type {kind}, which is not supported; the model reads text only",
            {"index": index, "kind": repr(kind)[:60]},
        )
    if extra := sorted(part.keys() - ANNOTATIONS - {name}):
        raise PydanticCustomError(
            "part",
            "part {index} has the unknown field {name}",
            {"index": index, "name": extra[0][:60]},
        )
    text = part.get(name)
    if not isinstance(text, str):
        raise PydanticCustomError("part", "part {index} has no text", {"index": index})
    return text


Text = Annotated[
    str,
    BeforeValidator(joined),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}),
]


def listed(value: object) -> object:
    """One text as a list of one."""
    return [value] if isinstance(value, str) else value


Stop = Annotated[str, Field(min_length=1)]
Texts = Annotated[
    list[Stop],
    BeforeValidator(listed),
    Field(max_length=64),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]

Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TemplateArguments(Model):
    """What a chat template may be told; never a template itself."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    preserve_thinking: bool | None = None
    clear_thinking: bool | None = None
    reasoning_effort: Effort | None = None

    def given(self) -> dict[str, Any]:
        """Those that were given, `thinking` under the name mlx-lm knows."""
        values = self.model_dump(exclude_none=True)
        if "thinking" in values:
            values.setdefault("enable_thinking", values.pop("thinking"))
        return values


class SamplingFields(Model):
    """How tokens are chosen, OpenAI's names and the usual ones for what it lacks."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, description="-1 and 0 keep all tokens")
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_context: int | None = None
    logit_bias: dict[TokenId, Bias] | None = Field(None, max_length=1024)
    seed: int | None = None
    x_dflash: bool | None = None

    def sampling(self, defaults: Sampling) -> Sampling:
        """The library's form; what was not given is as in `defaults`.

        Raises:
            UsageError: a value is out of range.
        """
        chosen = {field.name for field in fields(Sampling)}
        given: dict[str, Any] = self.model_dump(include=chosen, exclude_none=True)
        if given.get("top_k") == -1:
            given["top_k"] = 0
        if "logit_bias" in given:
            given["logit_bias"] = tuple((int(k), v) for k, v in given["logit_bias"].items())
        return replace(defaults, **given)


def thinking_of(effort: str | None) -> dict[str, Any]:
    """What an effort means to a chat template: whether to think, and how much."""
    if effort is None:
        return {}
    if effort in ("none", "minimal"):
        return {"enable_thinking": False}
    return {"enable_thinking": True, "reasoning_effort": effort}
