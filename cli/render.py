"""What a chat shows: answers on stdout, everything else on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.segment import Segment, Segments
from rich.style import Style

if TYPE_CHECKING:
    from dflash_mlx.conversation import Piece
    from dflash_mlx.generation import Response
    from dflash_mlx.logprobs import TokenLogprob
    from dflash_mlx.stats import Stats

DIM = Style(dim=True)
DRAFTED = Style(color="green")
# What a terminal would obey instead of showing it; tabs and line breaks are welcome.
CONTROLS = {code: "\ufffd" for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
BAR_AFTER_S = 1.0


@dataclass(frozen=True)
class Screen:
    """Both output streams, with colours where a terminal takes them."""

    quiet: bool = False
    out: Console = field(default_factory=Console)
    err: Console = field(default_factory=lambda: Console(stderr=True))

    def text(self, text: str, style: Style | None = None) -> None:
        """Part of an answer, character by character as it is."""
        _write(self.out, text, style)

    def thought(self, text: str) -> None:
        """Part of what the model thinks before it answers."""
        if not self.quiet:
            _write(self.err, text, DIM)

    def note(self, line: str) -> None:
        """A line that can be left out."""
        if not self.quiet:
            _write(self.err, f"{line}\n", DIM)

    def say(self, line: str) -> None:
        """A line that was asked for, or an error."""
        _write(self.err, f"{line}\n", None)


def _write(console: Console, text: str, style: Style | None) -> None:
    # Not as rich text: that would wrap lines and turn tabs into spaces.
    if console.is_terminal:
        text = text.replace("\r\n", "\n").translate(CONTROLS)
    if text:
        console.print(Segments([Segment(text, style)]), end="", soft_wrap=True)


class Drafted:
    """Finds out which characters of an answer came from accepted draft tokens.

    The text of a round may be held back, and lacks markers and stop texts. Its characters are
    looked up, in order, among those of the single tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._detokenizer = tokenizer.detokenizer
        self._waiting: list[tuple[str, bool]] = []
        self._last: Response | None = None

    def runs(self, piece: Piece) -> Iterator[tuple[str, bool]]:
        """The text of a piece in runs, each with whether it was drafted."""
        if piece.response is not self._last:
            self._last = piece.response
            self._take(piece.response)
        run, kind = "", False
        for char in piece.text:
            drafted = self._find(char)
            if drafted != kind and run:
                yield run, kind
                run = ""
            run, kind = run + char, drafted
        if run:
            yield run, kind

    def _take(self, response: Response) -> None:
        for index, token in enumerate(response.tokens):
            self._detokenizer.add_token(token)
            text = self._detokenizer.last_segment
            self._waiting += [(char, index < response.accepted) for char in text]

    def _find(self, wanted: str) -> bool:
        for index, (char, drafted) in enumerate(self._waiting):
            if char == wanted:
                del self._waiting[: index + 1]
                return drafted
        return False


@dataclass
class Answer:
    """What the pieces of one answer add up to."""

    text: str = ""
    thinking: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    last: Response | None = None

    def add(self, piece: Piece) -> None:
        """Count a piece."""
        if piece.thinking:
            self.thinking += piece.text
        else:
            self.text += piece.text
        if piece.response is not self.last:
            self.token_ids += piece.response.tokens
            self.logprobs += piece.response.logprobs
            self.last = piece.response


def show(screen: Screen, pieces: Iterable[Piece], answer: Answer, drafted: Drafted | None) -> None:
    """Stream an answer to the screen, ended by a line break however it ends."""
    try:
        for piece in pieces:
            if answer.thinking and not answer.text and piece.text and not piece.thinking:
                screen.thought("\n\n")
            answer.add(piece)
            if piece.thinking:
                screen.thought(piece.text)
            elif drafted is None:
                screen.text(piece.text)
            else:
                for run, kind in drafted.runs(piece):
                    screen.text(run, DRAFTED if kind else None)
    finally:
        if answer.text and not answer.text.endswith("\n"):
            screen.text("\n")
        elif answer.thinking and not answer.text:
            screen.thought("\n")


def status(stats: Stats, finish_reason: str | None) -> str:
    """The line behind an answer."""
    parts = [f"{stats.decode_tok_s:.1f} tokens/s", f"first token {stats.ttft_s:.2f} s"]
    if stats.drafted:
        parts.append(f"{stats.tokens_per_round:.2f} tokens/round in {count(stats.rounds, 'round')}")
    else:
        parts.append(f"{count(stats.generated_tokens, 'token')}, none drafted")
    parts.append(f"{stats.cached_tokens} of {stats.prompt_tokens} prompt tokens cached")
    if finish_reason != "stop":
        parts.append("cut at the token limit" if finish_reason else "stopped")
    return " · ".join(parts)


def count(number: int, word: str) -> str:
    """`1 round`, `2 rounds`."""
    return f"{number} {word}{'' if number == 1 else 's'}"


class PrefillBar:
    """Shows how far a prefill is, once it has taken a second."""

    def __init__(self, screen: Screen) -> None:
        self._console = screen.err
        self._wanted = screen.err.is_terminal and not screen.quiet
        self._began = time.perf_counter()
        self._bar: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        late = time.perf_counter() - self._began > BAR_AFTER_S
        if done >= total:
            self._stop()
        elif self._wanted and late:
            bar = self._bar or self._start(total)
            bar.update(bar.task_ids[0], completed=done, refresh=True)

    def __enter__(self) -> PrefillBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self, total: int) -> Progress:
        columns = (TextColumn("[dim]reading the prompt"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._bar.add_task("", total=total)
        self._bar.start()
        return self._bar

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
