"""The slash commands of the interactive chat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from dflash_mlx.errors import UsageError

from .ready import make_ready
from .render import count

if TYPE_CHECKING:
    from dflash_mlx.stats import Stats

    from .repl import Chat

BAR = 40


class Leave(Exception):
    """Ends the chat."""


@dataclass(frozen=True)
class Command:
    """What a slash command does; `usage` names its argument."""

    run: Callable[[Chat, str], None]
    help: str
    usage: str = ""


def run_command(chat: Chat, line: str) -> None:
    """Run a line that begins with a slash.

    Raises:
        UsageError: no such command, or a wrong argument.
        Leave: the chat is over.
    """
    name, _, argument = line[1:].strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        near = get_close_matches(name, COMMANDS, n=1, cutoff=0.4)
        hint = f"did you mean /{near[0]}?" if near else "/help lists them"
        raise UsageError(f"no command /{name}; {hint}")
    argument = argument.strip()
    if argument and not command.usage:
        raise UsageError(f"/{name} takes no argument")
    command.run(chat, argument)


def _help(chat: Chat, _: str) -> None:
    for name, command in COMMANDS.items():
        chat.screen.say(f"  {f'/{name} {command.usage}':<16}{command.help}")
    chat.screen.say("  Alt-Enter adds a line, Ctrl-C stops an answer, Ctrl-D leaves.")
    chat.screen.say("  A space before a slash makes it a message.")


def _stats(chat: Chat, _: str) -> None:
    if not chat.answers:
        chat.screen.say("no answers yet")
        return
    tokens = sum(stats.generated_tokens for stats in chat.answers)
    chat.screen.say(f"{count(len(chat.answers), 'answer')}, {count(tokens, 'token')}")
    drafted = total([stats for stats in chat.answers if stats.drafted])
    if drafted.rounds:
        chat.screen.say(
            f"{drafted.tokens_per_round:.2f} tokens/round in {count(drafted.rounds, 'round')}; "
            f"{drafted.accepted} of {drafted.drafted} drafted tokens accepted"
        )
    if drafted.copied.rounds:
        copied = drafted.copied
        chat.screen.say(
            f"copied from the text: {copied.accepted} of {copied.drafted} tokens accepted "
            f"in {count(copied.rounds, 'round')}"
        )
    for line in bars(drafted.acceptance_histogram):
        chat.screen.say(line)
    if len(drafted.widths) > 1:
        each = (f"{width} ({number})" for width, number in sorted(drafted.widths.items()))
        chat.screen.say(f"tokens verified, and in how many rounds: {', '.join(each)}")


def total(answers: list[Stats]) -> Stats:
    """The rounds of several answers together."""
    from dflash_mlx.stats import Stats

    whole = Stats()
    for stats in answers:
        whole.rounds += stats.rounds
        whole.round_tokens += stats.round_tokens
        whole.drafted += stats.drafted
        whole.accepted += stats.accepted
        whole.copied.add(stats.copied.rounds, stats.copied.drafted, stats.copied.accepted)
        for accepted, rounds in stats.histogram.items():
            whole.histogram[accepted] = whole.histogram.get(accepted, 0) + rounds
        for width, rounds in stats.widths.items():
            whole.widths[width] = whole.widths.get(width, 0) + rounds
    return whole


def bars(histogram: list[int]) -> list[str]:
    """A bar for how often 0, 1, 2, ... drafted tokens were accepted."""
    rounds, most = sum(histogram), max(histogram, default=0)
    return [
        f"{accepted:>4} accepted {'█' * -(-number * BAR // most):<{BAR}} "
        f"{number:>5} {number / rounds:>4.0%}"
        for accepted, number in enumerate(histogram)
    ]


def _reset(chat: Chat, _: str) -> None:
    chat.conversation.reset()
    chat.screen.say("started over")


def _undo(chat: Chat, _: str) -> None:
    chat.screen.say("dropped the last exchange" if chat.conversation.undo() else "nothing to undo")


def _retry(chat: Chat, _: str) -> None:
    chat.answer(chat.conversation.retry)


def _system(chat: Chat, text: str) -> None:
    chat.conversation.system = text or None
    chat.screen.say("system prompt set" if text else "system prompt left to the template")


def _think(chat: Chat, choice: str) -> None:
    if not chat.conversation.pair.tokenizer.has_thinking:
        raise UsageError(f"{chat.conversation.pair.name} has no thinking mode")
    chat.conversation.think = _switch("think", choice)
    chat.screen.say(f"thinking {choice}")


def _draft(chat: Chat, choice: str) -> None:
    if chat.conversation.pair.draft is None:
        raise UsageError("no draft was loaded; start again without --no-draft")
    chat.options = replace(chat.options, speculate=_switch("draft", choice))
    chat.screen.say(f"draft {choice}")


def _block(chat: Chat, size: str) -> None:
    if size != "auto" and not size.isdecimal():
        raise UsageError(f"/block is followed by a number of tokens or auto, not {size!r}")
    chat.options = replace(chat.options, block="auto" if size == "auto" else int(size))
    make_ready(chat.conversation.pair, chat.options, chat.screen)
    chat.screen.say(f"block {chat.options.block}")


def _save(chat: Chat, path: str) -> None:
    chat.conversation.save(_need("save", path))
    chat.screen.say(f"saved to {path}")


def _load(chat: Chat, path: str) -> None:
    chat.conversation.load(_need("load", path))
    exchanges = count(len(chat.conversation.messages) // 2, "exchange")
    chat.screen.say(f"loaded {exchanges} from {path}")


def _quit(chat: Chat, _: str) -> None:
    raise Leave


def _switch(name: str, choice: str) -> bool:
    if choice not in ("on", "off"):
        raise UsageError(f"/{name} is followed by on or off, not {choice!r}")
    return choice == "on"


def _need(name: str, path: str) -> str:
    if not path:
        raise UsageError(f"/{name} is followed by a file name")
    return path


COMMANDS = {
    "help": Command(_help, "Show this list"),
    "stats": Command(_stats, "How many drafted tokens were accepted"),
    "reset": Command(_reset, "Start over, with the same system prompt"),
    "undo": Command(_undo, "Drop the last question and its answer"),
    "retry": Command(_retry, "Ask the last question again"),
    "system": Command(_system, "Set the system prompt; without text, the template's own", "TEXT"),
    "think": Command(_think, "Let a model that can think do so", "on|off"),
    "draft": Command(_draft, "Decode with or without the draft", "on|off"),
    "block": Command(_block, "Tokens verified per round; auto: as many as pay", "N|auto"),
    "save": Command(_save, "Write the conversation to a file", "FILE"),
    "load": Command(_load, "Go on with a saved conversation", "FILE"),
    "quit": Command(_quit, "Leave, as Ctrl-D does"),
}
