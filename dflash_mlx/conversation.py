"""A conversation: its messages, and one session that computes only what is new in each turn.

Every turn renders the whole conversation with the model's chat template. The session keeps the
longest common prefix of that and of what it has computed, so a template that rewrites the past
(most drop earlier thinking) costs some prefill and never a wrong answer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from .errors import UsageError
from .generation import Response, stream_generate
from .loading import Pair
from .options import Options
from .paths import write_whole
from .prefix.memory import Memory
from .prefix.tree import common
from .session import Progress
from .splitting import Splitter, header_of, opens_thinking
from .thinking import Thinking

FORMAT = "dflash-mlx conversation"
VERSION = 1

Message = dict[str, str]


@dataclass(frozen=True)
class Piece:
    """A piece of an answer: text of one kind.

    Attributes:
        text: may be empty.
        thinking: whether the text lies between the model's think markers.
        response: the round it came with; several pieces share one where the kind changes.
    """

    text: str
    thinking: bool
    response: Response


class Conversation:
    """Questions and answers with one pair; not to be used by two threads at once.

    Args:
        pair: target, draft and tokenizer.
        system: the system prompt; None leaves it to the template.
        think: whether a model that can think should; None leaves it to the template.

    Attributes:
        messages: the history without the system prompt; answers stand without their thinking.

    Raises:
        UsageError: the model has no chat template.
    """

    def __init__(self, pair: Pair, *, system: str | None = None, think: bool | None = None) -> None:
        if not pair.tokenizer.has_chat_template:
            raise UsageError(
                f"{pair.name} has no chat template; use --raw to send the prompt as it is"
            )
        self.pair = pair
        self.system = system
        self.think = think
        self.messages: list[Message] = []
        self._memory = Memory(pair)

    @property
    def prompt_ids(self) -> list[int]:
        """The conversation so far as the model gets it, up to where its answer begins."""
        return self._render(True)

    def ask(
        self, text: str, options: Options | None = None, progress: Progress | None = None
    ) -> Generator[Piece, None, None]:
        """Put a question and stream the answer.

        An answer that is broken off stays in the history as far as it got. If nothing came, or
        the question cannot be served, the history is as it was before.

        Args:
            text: the question.
            options: see `Options`.
            progress: called during the prefill with tokens done and to do.

        Raises:
            UsageError: the question is empty or too long, or an option does not fit.
        """
        if not text.strip():
            raise UsageError("the message is empty; type a question")
        self.messages.append({"role": "user", "content": text})
        answer, complete = "", False
        try:
            for piece in self._answer(options, progress):
                answer += "" if piece.thinking else piece.text
                complete = piece.response.finish_reason is not None
                yield piece
        finally:
            if answer.strip() or complete:
                self.messages.append({"role": "assistant", "content": answer})
            else:
                self.messages.pop()

    def retry(
        self, options: Options | None = None, progress: Progress | None = None
    ) -> Generator[Piece, None, None]:
        """Put the last question again; its old answer is kept if no new one comes.

        Raises:
            UsageError: there is no last question; otherwise as `ask`.
        """
        before = list(self.messages)
        if not self.undo():
            raise UsageError("nothing to retry: no question was asked yet")
        try:
            yield from self.ask(before[-2]["content"], options, progress)
        finally:
            if len(self.messages) < len(before):
                self.messages = before

    def undo(self) -> bool:
        """Drop the last question with its answer; whether there was one."""
        there = bool(self.messages)
        del self.messages[-2:]
        return there

    def reset(self) -> None:
        """Drop all questions and answers; the system prompt stays."""
        self.messages.clear()

    def save(self, path: str | Path) -> None:
        """Write the conversation to a JSON file, whole or not at all.

        What was computed for it goes into a folder beside it, `FILE.cache`.

        Raises:
            UsageError: the file or the folder cannot be written.
        """
        path = _path(path)
        content = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.pair.name,
            "system": self.system,
            "messages": self.messages,
        }
        write_whole(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
        self._memory.save(_beside(path))

    def load(self, path: str | Path) -> None:
        """Go on with a saved conversation, of this or another model.

        Of this one nothing has to be computed again if its cache still lies beside it.

        Raises:
            UsageError: the file cannot be read or holds no conversation; nothing has changed.
        """
        path = _path(path)
        content = _read(path)
        self.system, self.messages = content["system"], content["messages"]
        self._memory.load(_beside(path))

    def _answer(self, options: Options | None, progress: Progress | None) -> Iterator[Piece]:
        prompt = self.prompt_ids
        past, tokenizer = self._render(False), self.pair.tokenizer
        thinking = tokenizer.has_thinking and opens_thinking(tokenizer, past, prompt)
        if options is not None and options.guide is not None:
            prompt = [*prompt, *header_of(tokenizer)]
            if thinking or self._may_think:
                options = replace(options, thinking=Thinking.of(tokenizer, opened=thinking))
        splitter = Splitter(tokenizer, thinking=thinking)
        session = self._memory.recall(prompt, common(prompt, past))
        progress = self._memory.watch(progress)
        for response in stream_generate(self.pair, prompt, options, session, progress):
            pieces = splitter.split(response.text, ended=response.finish_reason is not None)
            for index, (kind, text) in enumerate(pieces):
                if text or index == len(pieces) - 1:
                    yield Piece(text, kind == "thinking", response)

    @property
    def _may_think(self) -> bool:
        return bool(self.think) and self.pair.tokenizer.has_thinking

    def _render(self, generation_prompt: bool) -> list[int]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages = [*system, *self.messages]
        _check_text(messages)
        think = {} if self.think is None else {"enable_thinking": self.think}
        try:
            ids = self.pair.tokenizer.apply_chat_template(
                messages, add_generation_prompt=generation_prompt, **think
            )
        except TemplateError as error:
            raise UsageError(
                f"the chat template of {self.pair.name} refuses the conversation: {error}"
            ) from error
        return list(ids)


def _check_text(messages: list[Message]) -> None:
    """Refuse halves of surrogate pairs, which no tokenizer takes."""
    for message in messages:
        try:
            message["content"].encode()
        except UnicodeEncodeError:
            raise UsageError(f"the {message['role']} message is not valid UTF-8") from None


def _path(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))


def _beside(path: Path) -> Path:
    """The folder of what was computed for a saved conversation."""
    return path.with_name(f"{path.name}.cache")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False).encode()  # finds halves of surrogate pairs
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a saved conversation: no valid JSON") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"{path} is not a saved conversation; /save writes one")
    if content.get("version") != VERSION:
        raise UsageError(
            f"{path} has format version {content.get('version')!r}, this release reads {VERSION}"
        )
    if not _is_sound(content.get("system"), content.get("messages")):
        raise UsageError(f"{path} is a damaged conversation; its messages cannot be used")
    return content


def _is_sound(system: object, messages: object) -> bool:
    """Whether these are a system prompt and messages as `save` writes them."""
    if not isinstance(system, str | None) or not isinstance(messages, list) or len(messages) % 2:
        return False
    roles = ("user", "assistant") * (len(messages) // 2)
    return all(
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and message["role"] == role
        and isinstance(message["content"], str)
        for message, role in zip(messages, roles, strict=True)
    )
