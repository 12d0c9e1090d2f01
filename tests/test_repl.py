import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from dflash_mlx import conversation as conversation_module
from dflash_mlx import paths
from dflash_mlx.cli import reader as reader_module
from dflash_mlx.cli.commands import COMMANDS, bars
from dflash_mlx.cli.reader import history, reader
from dflash_mlx.cli.render import BAR_AFTER_S, Drafted, PrefillBar, Screen, show
from dflash_mlx.cli.render import Answer as RenderedAnswer
from dflash_mlx.cli.repl import Chat, header, loop
from dflash_mlx.conversation import Conversation, Piece
from dflash_mlx.generation import Response
from dflash_mlx.stats import Stats

from .tiny import OPENING, options, tiny_pair


def screen(**more: Any) -> Screen:
    return Screen(
        out=Console(file=io.StringIO(), **more), err=Console(file=io.StringIO(), width=200, **more)
    )


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def hold(*lines: str | BaseException, chat: Chat | None = None, **pair: Any) -> Chat:
    """Type `lines` into a chat until they are used up; an exception stands for its key."""
    chat = chat or Chat(Conversation(tiny_pair(**pair)), options(), screen())
    left = iter(lines)

    def read() -> str:
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    loop(chat, read)
    assert next(left, None) is None, "the chat ended early"
    return chat


def said(*lines: str | BaseException, **pair: Any) -> list[str]:
    """Lines on stderr."""
    return printed(hold(*lines, **pair).screen.err).splitlines()


def questions(chat: Chat) -> list[str]:
    return [m["content"] for m in chat.conversation.messages if m["role"] == "user"]


def stopping(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """Press Ctrl-C once the model has said `texts`."""

    def stream(*_: Any) -> Iterator[Response]:
        for text in texts:
            yield Response(text, (0,), 0, 1, 0.0, 1, 0.0, 0.0, None, Stats())
        raise KeyboardInterrupt

    monkeypatch.setattr(conversation_module, "stream_generate", stream)


def test_answers_on_stdout_and_figures_on_stderr() -> None:
    chat = hold("one", "", "  ", "two")
    answers = [m["content"] for m in chat.conversation.messages if m["role"] == "assistant"]
    assert printed(chat.screen.out) == "".join(f"{answer}\n" for answer in answers)
    assert len(answers) == 2
    first, second = printed(chat.screen.err).splitlines()
    assert "0 of 6 prompt tokens cached" in first
    assert "17 of 25 prompt tokens cached" in second
    assert re.match(
        r"[\d.]+ tokens/s · first token [\d.]+ s · [\d.]+ tokens/round in \d+ rounds", first
    )


def test_help_lists_every_command() -> None:
    lines = said("/help")
    assert all(any(f"/{name}" in line for line in lines) for name in COMMANDS)


def test_stats() -> None:
    assert said("/stats") == ["no answers yet"]
    lines = said("one", "/stats")[1:]
    assert lines[0] == "1 answer, 12 tokens"
    assert "tokens/round" in lines[1]
    assert "0 accepted" in lines[2]
    assert said("one", "/stats", draft=False)[1:] == ["1 answer, 12 tokens"]


def test_bars() -> None:
    assert bars([1, 0, 80]) == [
        f"   0 accepted █{' ' * 39}     1   1%",
        f"   1 accepted {' ' * 40}     0   0%",
        f"   2 accepted {'█' * 40}    80  99%",
    ]
    assert bars([]) == []


def test_reset_undo_and_retry() -> None:
    assert questions(hold("one", "two", "/undo")) == ["one"]
    assert questions(hold("one", "two", "/reset", "three")) == ["three"]
    chat = hold("one", "/retry")
    assert questions(chat) == ["one"]
    assert len(chat.answers) == 2
    assert said("/undo") == ["nothing to undo"]
    assert said("/retry") == ["error: nothing to retry: no question was asked yet"]


def test_system() -> None:
    chat = hold("/system be  brief")
    assert chat.conversation.system == "be  brief"
    assert hold("/system", chat=chat).conversation.system is None


def test_think() -> None:
    chat = hold("/think off", template=OPENING, thinking=True)
    assert chat.conversation.think is False
    assert hold("/think on", chat=chat).conversation.think is True
    assert said("/think on") == ["error: tiny has no thinking mode"]


def test_draft() -> None:
    chat = hold("/draft off", "one")
    assert chat.answers[-1].drafted == 0
    hold("/draft on", "one", chat=chat)
    assert chat.answers[-1].drafted > 0
    assert said("/draft on", draft=False)[0].startswith("error: no draft was loaded")


def test_block() -> None:
    chat = hold("/block 3", "one")
    assert chat.answers[-1].drafted == 2 * chat.answers[-1].rounds
    assert "block is 1, expected 2 to 64, or auto" in said("/block 1")[0]


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "my chat.json"
    before = hold("one", f"/save {path}").conversation.messages
    chat = hold(f"/load {path}")
    assert chat.conversation.messages == before
    assert printed(chat.screen.err) == f"loaded 1 exchange from {path}\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/hepl", "no command /hepl; did you mean /help?"),
        ("/xyzzy", "no command /xyzzy; /help lists them"),
        ("/", "no command /; /help lists them"),
        ("/undo 3", "/undo takes no argument"),
        ("/draft maybe", "/draft is followed by on or off, not 'maybe'"),
        ("/block", "/block is followed by a number of tokens or auto, not ''"),
        ("/block many", "/block is followed by a number of tokens or auto, not 'many'"),
        ("/save", "/save is followed by a file name"),
        ("/load", "/load is followed by a file name"),
    ],
)
def test_a_wrong_command_is_one_line_and_the_chat_goes_on(line: str, message: str) -> None:
    chat = hold(line, "one")
    assert printed(chat.screen.err).splitlines()[0] == f"error: {message}"
    assert questions(chat) == ["one"]


def test_a_wrong_question_is_one_line_and_the_chat_goes_on() -> None:
    chat = hold("x" * 3000, "one")
    assert printed(chat.screen.err).startswith("error: the prompt has 3003 tokens")
    assert questions(chat) == ["one"]


def test_a_space_before_a_slash_makes_a_message() -> None:
    assert questions(hold(" /usr/bin is what?")) == ["/usr/bin is what?"]


def test_quit() -> None:
    with pytest.raises(AssertionError, match="ended early"):
        hold("/quit", "one")


def test_ctrl_c_ends_the_answer_and_not_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, "half an ", "answer")
        chat = hold("one")
    assert chat.conversation.messages[-1]["content"] == "half an answer"
    assert printed(chat.screen.out) == "half an answer\n"
    assert printed(chat.screen.err).endswith("stopped\n")
    assert questions(hold("two", chat=chat)) == ["one", "two"]


def test_ctrl_c_before_the_answer_drops_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping(monkeypatch)
    chat = hold("one")
    assert chat.conversation.messages == []
    assert printed(chat.screen.err) == "stopped; the question was dropped\n"


def test_ctrl_c_while_text_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(Conversation(tiny_pair()), options(), screen())

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Drafted, "runs", interrupt)
        chat.show_drafts = True
        hold("one", chat=chat)
    assert questions(chat) == ["one"]  # its first round had been taken already
    chat.show_drafts = False
    assert questions(hold("two", chat=chat)) == ["one", "two"]


def test_ctrl_c_twice_at_the_prompt_leaves() -> None:
    chat = hold(KeyboardInterrupt(), "one", KeyboardInterrupt(), "two")
    assert questions(chat) == ["one", "two"]
    with pytest.raises(AssertionError, match="ended early"):
        hold(KeyboardInterrupt(), KeyboardInterrupt(), "one")


def test_header() -> None:
    assert header(tiny_pair(), options()).startswith("tiny · draft tiny-dflash · block 4 · ")
    assert header(tiny_pair(draft=False), options()).startswith("tiny · no draft · ")


def pieces(conversation: Conversation, *rounds: tuple[str, str, int]) -> list[Piece]:
    """Pieces from rounds: tokens by their text, text that came, tokens accepted."""
    found = []
    for raw, text, accepted in rounds:
        ids = tuple(conversation.pair.tokenizer.encode(raw, add_special_tokens=False))
        response = Response(text, ids, accepted, 1, 0.0, 1, 0.0, 0.0, None, Stats())
        found.append(Piece(text, False, response))
    return found


def test_drafted_characters_are_found() -> None:
    conversation = Conversation(tiny_pair())
    drafted = Drafted(conversation.pair.tokenizer)
    # Text is held back in the first round and a stop text is cut from the second.
    rounds = pieces(conversation, ("abcd", "ab", 3), ("e<stop", "cde", 1))
    assert [list(drafted.runs(piece)) for piece in rounds] == [
        [("ab", True)],
        [("c", True), ("d", False), ("e", True)],
    ]


def test_drafted_text_is_green_in_a_terminal() -> None:
    conversation = Conversation(tiny_pair())
    terminal = screen(force_terminal=True, color_system="standard")
    parts = pieces(conversation, ("abc", "abc", 2))
    show(terminal, parts, RenderedAnswer(), Drafted(conversation.pair.tokenizer))
    assert printed(terminal.out) == "\x1b[32mab\x1b[0mc\n"


def test_a_terminal_gets_no_control_characters() -> None:
    terminal, pipe = screen(force_terminal=True), screen()
    for each in (terminal, pipe):
        each.text("a\tb\r\nc\x1b[2J")
    assert printed(terminal.out) == "a\tb\nc\ufffd[2J"
    assert printed(pipe.out) == "a\tb\r\nc\x1b[2J"


def test_a_round_of_two_pieces_counts_once() -> None:
    conversation = Conversation(tiny_pair())
    (piece,) = pieces(conversation, ("xy", "y", 0))
    answer = RenderedAnswer()
    for each in (Piece("x", True, piece.response), piece):
        answer.add(each)
    assert (answer.thinking, answer.text) == ("x", "y")
    assert tuple(answer.token_ids) == piece.response.tokens


def test_thinking_is_dim_and_apart() -> None:
    terminal = screen(force_terminal=True, color_system="standard")
    conversation = Conversation(tiny_pair())
    (piece,) = pieces(conversation, ("x", "x", 0))
    thought = Piece("hm", True, piece.response)
    show(terminal, [thought, piece], RenderedAnswer(), None)
    assert printed(terminal.err) == "\x1b[2mhm\x1b[0m\x1b[2m\n\n\x1b[0m"
    assert printed(terminal.out) == "x\n"


@pytest.mark.parametrize("late", [True, False])
def test_a_long_prefill_shows_a_bar(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    terminal = screen(force_terminal=True)
    with PrefillBar(terminal) as bar:
        bar._began -= 2 * BAR_AFTER_S if late else 0
        bar(512, 2048)
        bar(1024, 2048)
        bar(2048, 2048)
    assert ("1024/2048" in printed(terminal.err)) is late


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Type keys at the real prompt; what it returns."""
    monkeypatch.setattr(paths, "cache_root", lambda: tmp_path / "cache")
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):

        def type_(text: str) -> str:
            keys.send_text(text)
            return reader(DummyOutput())()

        yield type_


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("hello\r", "hello"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("\x1b[200~one\r\ntwo\x1b[201~\r", "one\ntwo"),
    ],
)
def test_the_prompt(typed: Callable[..., str], tmp_path: Path, keys: str, line: str) -> None:
    assert typed(keys) == line
    assert line.splitlines()[0] in (tmp_path / "cache" / "history").read_text()


def test_ctrl_c_and_ctrl_d_at_the_prompt(typed: Callable[..., str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        typed("hello\x03")
    with pytest.raises(EOFError):
        typed("\x04")


def test_history_is_the_users_alone(tmp_path: Path) -> None:
    history(tmp_path / "deep" / "history").append_string("hello")
    assert (tmp_path / "deep" / "history").stat().st_mode & 0o077 == 0
    assert "hello" in (tmp_path / "deep" / "history").read_text()


def test_history_without_a_place_to_keep_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = history(tmp_path / "file" / "history")
    kept.append_string("hello")
    assert kept.get_strings() == ["hello"]


def test_every_command_is_completed() -> None:
    assert set(reader_module.completions()) == {f"/{name}" for name in COMMANDS}
