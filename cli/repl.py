"""The interactive chat: a prompt, a streamed answer, and again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dflash_mlx.errors import DFlashError

from .commands import Leave, run_command
from .reader import reader
from .ready import make_ready
from .render import Answer, Drafted, PrefillBar, Screen, show, status
from .several import read_line

if TYPE_CHECKING:
    from dflash_mlx.conversation import Conversation, Piece
    from dflash_mlx.loading import Pair
    from dflash_mlx.options import Options
    from dflash_mlx.stats import Stats

    from .chat import ChatOptions

Question = Callable[["Options", PrefillBar], "Generator[Piece, None, None]"]


@dataclass
class Chat:
    """What a running chat knows, and its slash commands change.

    Attributes:
        answers: figures of every answer since the start.
    """

    conversation: Conversation
    options: Options
    screen: Screen
    show_drafts: bool = False
    answers: list[Stats] = field(default_factory=list)

    def take(self, line: str) -> None:
        """Run a command or answer a message."""
        if line.startswith("/"):
            run_command(self, line)
        elif text := line.strip():
            self.answer(lambda options, bar: self.conversation.ask(text, options, bar))

    def answer(self, question: Question) -> None:
        """Stream the answer to a question; Ctrl-C ends it and keeps what came."""
        answer = Answer()
        reason = None
        tokenizer = self.conversation.pair.tokenizer
        drafted = Drafted(tokenizer) if self.show_drafts else None
        with PrefillBar(self.screen) as bar, closing(question(self.options, bar)) as pieces:
            try:
                show(self.screen, pieces, answer, drafted)
                reason = answer.last.finish_reason if answer.last else None
            except KeyboardInterrupt:
                if answer.last is None:
                    self.screen.note("stopped; the question was dropped")
        if answer.last is not None:
            self.answers.append(answer.last.stats)
            self.screen.note(status(answer.last.stats, reason))


def talk(pair: Pair, options: Options, ask: ChatOptions, screen: Screen) -> None:
    """Hold a conversation until the user leaves."""
    from dflash_mlx.conversation import Conversation

    conversation = Conversation(pair, system=ask.system, think=ask.think)
    make_ready(pair, options, screen)
    screen.note(header(pair, options))
    launched = pair.ranks.size > 1 and not sys.stdin.isatty()
    read = read_line if launched else reader()
    loop(Chat(conversation, options, screen, ask.show_drafts), read)


def header(pair: Pair, options: Options) -> str:
    """Model, draft, block and device."""
    import mlx.core as mx

    parts = [pair.name]
    if pair.draft is not None:
        most = pair.draft.config.block_size
        block = f"auto up to {most}" if options.block == "auto" else options.width(most)
        parts += [f"draft {pair.draft_name}", f"block {block}"]
    else:
        parts.append("no draft")
    if pair.ranks.size > 1:
        parts.append(pair.ranks.description)
    device = mx.default_device()
    name = str(mx.device_info(device).get("device_name", device))
    return " · ".join([*parts, name, "/help lists commands"])


def loop(chat: Chat, read: Callable[[], str]) -> None:
    """Read and answer until the end of input or two interrupts in a row."""
    interrupted = False
    while True:
        try:
            line = read()
        except EOFError:
            return
        except KeyboardInterrupt:
            if interrupted:
                return
            interrupted = True
            chat.screen.note("Ctrl-C again or Ctrl-D leaves")
            continue
        interrupted = False
        try:
            chat.take(line)
        except Leave:
            return
        except DFlashError as error:
            chat.screen.say(f"error: {' '.join(str(error).split())}")
        except KeyboardInterrupt:
            chat.screen.note("stopped")
