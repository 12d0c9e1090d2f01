"""Reads messages from the terminal: editing, history, completion of slash commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import COMMANDS

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import Output


def reader(output: Output | None = None) -> Callable[[], str]:
    """A function that prompts for a message and returns it; Alt-Enter adds a line to one.

    Args:
        output: where the prompt is shown; by default the terminal, even if stdout is a file.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output

    from dflash_mlx.paths import cache_root

    names = completions()
    session: PromptSession[str] = PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        key_bindings=_keys(),
        completer=WordCompleter(list(names), meta_dict=names, sentence=True),
        history=history(cache_root() / "history"),
        output=output or create_output(always_prefer_tty=True),
    )
    return session.prompt


def completions() -> dict[str, str]:
    """What Tab offers, with what each does."""
    return {f"/{name}": command.help for name, command in COMMANDS.items()}


def history(path: Path) -> History:
    """What was typed before, kept in a file of the user's alone where that can be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.open("a").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def _keys() -> KeyBindings:
    """Enter sends, and pasted text keeps its line breaks."""
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
