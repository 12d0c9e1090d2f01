"""From a request's messages to the ids the model gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from ..loading import Pair
from ..prefix.tree import common
from ..splitting import header_of, opens_thinking
from .refusal import Refused
from .wanted import Message, Wanted

# What templates raise over messages or tools that they cannot render.
UNRENDERED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
GAP = "\n\n"
SAID = "x"  # whatever is said


@dataclass(frozen=True)
class Prompt:
    """What the model gets.

    Attributes:
        ids: at least one, and fewer than the context holds.
        thinking: whether the answer begins inside a think block.
        stable: places where the next prompt of the conversation may leave this one, if known.
    """

    ids: Sequence[int]
    thinking: bool = False
    stable: Sequence[int] = ()


def prepare(pair: Pair, wanted: Wanted, most: int | None = None, *, stable: bool = False) -> Prompt:
    """Render and encode a request.

    Args:
        pair: whose template and tokenizer.
        wanted: the request.
        most: characters beyond which it need not be encoded to be known as too long.
        stable: whether anybody wants to know the stable places.

    Raises:
        Refused: the chat template does not take it, or it is empty or too long.
    """
    given = len(wanted.prompt or "") + sum(len(m["content"]) for m in wanted.messages)
    if most is not None and given > most:
        raise too_long(f"{given} characters", pair)
    if wanted.prompt is not None:
        return Prompt(_checked(pair, _encoded(pair, wanted.prompt)))
    if not pair.tokenizer.has_chat_template:
        raise Refused(f"{pair.name} has no chat template; use /v1/completions", code="no_template")
    if wanted.tools and not pair.tokenizer.has_tool_calling:
        raise Refused(
            f"{pair.name} has no known format for tool calls; leave tools out",
            param="tools",
            code="unsupported_value",
        )
    messages = merged(wanted.messages)
    header = header_of(pair.tokenizer) if wanted.options.guide else []
    ids = _checked(pair, [*_rendered(pair, wanted, messages, answer=True), *header])
    if wanted.goes_on or not (stable or pair.tokenizer.has_thinking):
        return Prompt(ids)
    past = _rendered(pair, wanted, messages, answer=False)
    places = _stable(pair, wanted, messages, ids, past) if stable else ()
    thinking = pair.tokenizer.has_thinking and opens_thinking(pair.tokenizer, past, ids)
    return Prompt(ids, thinking, places)


def _stable(
    pair: Pair, wanted: Wanted, messages: list[Message], ids: list[int], past: list[int]
) -> Sequence[int]:
    """Where the next prompt may leave `ids`.

    That is where the answer begins, unless a template drops what was thought since the last
    question once there is another one: then the prompt with a tool's result leaves it there, and
    the one with the next question before.
    """
    answer = common(ids, past)
    turn = [{"role": "assistant", "content": SAID}, {"role": "user", "content": SAID}]
    try:
        question = common(ids, _rendered(pair, wanted, [*messages, *turn], answer=False))
    except Refused:
        return (answer,)
    return (question, answer) if question < answer else (question,)


def merged(messages: Sequence[Message]) -> list[Message]:
    """Messages with system prompts at the start as one, as most templates want them."""
    count = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    text = GAP.join(message["content"] for message in messages[:count])
    head = [{"role": "system", "content": text}] if count else []
    return [*head, *messages[count:]]


def _rendered(pair: Pair, wanted: Wanted, messages: list[Message], *, answer: bool) -> list[int]:
    try:
        return _render(pair, wanted, messages, answer)
    except Refused:
        if all(message["role"] != "system" for message in messages[1:]):
            raise
    # Many templates take instructions at the start alone; agents add some later.
    later = [m | {"role": "user"} if m["role"] == "system" else m for m in messages[1:]]
    return _render(pair, wanted, [messages[0], *later], answer)


def _render(pair: Pair, wanted: Wanted, messages: list[Message], answer: bool) -> list[int]:
    more: dict[str, Any] = dict(wanted.template)
    if wanted.tools:
        more["tools"] = [tool.shown() for tool in wanted.tools]
    if wanted.goes_on:
        more["continue_final_message"] = True
    try:
        ids = pair.tokenizer.apply_chat_template(
            messages, add_generation_prompt=answer and not wanted.goes_on, **more
        )
    except (TemplateError, *UNRENDERED) as error:
        raise Refused(
            f"the chat template of {pair.name} refuses the conversation: {error}", code="template"
        ) from error
    return list(ids)


def _encoded(pair: Pair, prompt: str | Sequence[int]) -> list[int]:
    vocabulary = pair.target.vocab_size
    if not isinstance(prompt, str) and any(not 0 <= i < vocabulary for i in prompt):
        raise Refused(
            f"prompt has ids outside the vocabulary (0 to {vocabulary - 1})", param="prompt"
        )
    return pair.encode(prompt)


def _checked(pair: Pair, ids: list[int]) -> list[int]:
    if not ids:
        raise Refused("the prompt is empty; give at least one token", param="prompt")
    if len(ids) >= pair.max_context:
        raise too_long(f"{len(ids)} tokens", pair)
    return ids


def too_long(size: str, pair: Pair) -> Refused:
    """The refusal of a prompt of this size."""
    return Refused(
        f"the prompt has {size}, the context holds {pair.max_context} tokens with the answer; "
        "shorten the prompt",
        code="context_length_exceeded",
    )
