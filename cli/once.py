"""One prompt, one answer: from the command line or a pipe, as text or JSON."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from dflash_mlx import __version__
from dflash_mlx.errors import UsageError

from .ready import make_ready
from .render import Answer, Drafted, PrefillBar, Screen, show, status

if TYPE_CHECKING:
    from dflash_mlx.conversation import Piece
    from dflash_mlx.loading import Pair
    from dflash_mlx.options import Options

    from .chat import ChatOptions


def read_prompt(given: str | None, raw: bool, piped: bool = True) -> str | None:
    """The prompt of the command line, what is piped in, or both; None if there is neither.

    Args:
        given: on the command line.
        raw: leave it as it is.
        piped: whether to read what is piped in.

    Raises:
        UsageError: the prompt is empty or not UTF-8.
    """
    below = None if not piped or (sys.stdin is not None and sys.stdin.isatty()) else read_stdin()
    if given is None and below is None:
        return None
    if given is not None:
        check_utf8(given)
    prompt = "\n\n".join(part for part in (given, below) if part)
    if not prompt.strip():
        raise UsageError("the prompt is empty; give one with --prompt, or pipe one in")
    return prompt if raw else prompt.strip("\n")


def read_stdin() -> str:
    """What was piped in; UsageError where it is not UTF-8."""
    if sys.stdin is None:
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the piped text is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}; convert it first, for example with iconv"
        ) from None


def check_utf8(text: str) -> None:
    """Raise UsageError where an argument held bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not UTF-8 at character {error.start}") from None


def answer_once(
    pair: Pair, prompt: str, options: Options, ask: ChatOptions, screen: Screen
) -> None:
    """Answer a prompt and show it as `ask` says."""
    if options.seed is None and not options.sampling.greedy:
        options = replace(options, seed=secrets.randbits(32))
    make_ready(pair, options, screen)
    answer = Answer()
    with PrefillBar(screen) as bar, closing(_pieces(pair, prompt, options, ask, bar)) as pieces:
        if ask.json:
            for piece in pieces:
                answer.add(piece)
        else:
            show(screen, pieces, answer, Drafted(pair.tokenizer) if ask.show_drafts else None)
    assert answer.last is not None
    screen.note(status(answer.last.stats, answer.last.finish_reason))
    if ask.json:
        typer.echo(json.dumps(record(pair, answer, options.seed), ensure_ascii=False))


def _pieces(pair: Pair, prompt: str, options: Options, ask: ChatOptions, bar: PrefillBar) -> Any:
    from dflash_mlx.conversation import Conversation

    if ask.raw:
        return _raw(pair, prompt, options, bar)
    # What a schema is for is read by programs, which need no thoughts unless they were asked for.
    think = False if ask.schema is not None and ask.think is None else ask.think
    conversation = Conversation(pair, system=ask.system, think=think)
    return conversation.ask(prompt, options, bar)


def _raw(pair: Pair, prompt: str, options: Options, bar: PrefillBar) -> Iterator[Piece]:
    from dflash_mlx.conversation import Piece
    from dflash_mlx.generation import stream_generate

    for response in stream_generate(pair, prompt, options, progress=bar):
        yield Piece(response.text, False, response)


def record(pair: Pair, answer: Answer, seed: int | None) -> dict[str, object]:
    """An answer as `--json` prints it."""
    assert answer.last is not None
    return {
        "text": answer.text,
        "thinking": answer.thinking,
        "token_ids": answer.token_ids,
        **logprobs(pair, answer),
        **answer.last.stats.as_dict(),
        "finish_reason": answer.last.finish_reason,
        "model": pair.name,
        "draft": pair.draft_name,
        "kernels": kernels(pair),
        "seed": seed,
        "versions": versions(),
    }


def logprobs(pair: Pair, answer: Answer) -> dict[str, object]:
    """Log-probabilities, if they were asked for."""
    if not answer.logprobs:
        return {}

    def named(token: int, logprob: float) -> dict[str, object]:
        return {"token": token, "text": pair.tokenizer.decode([token]), "logprob": logprob}

    return {
        "logprobs": [
            {**named(one.token, one.logprob), "top": [named(*other) for other in one.top]}
            for one in answer.logprobs
        ]
    }


def kernels(pair: Pair) -> dict[str, object]:
    """Which kernels ran, which are out of use, and what rounds with them took beside others."""
    ratios = [trial.ratio for trial in pair.trials.values() if trial.ratio is not None]
    return {
        "mode": pair.kernels.mode,
        "ran": pair.kernels.proven,
        "out_of_use": pair.kernels.refused,
        "round_time_ratio": ratios[-1] if ratios else None,
    }


def versions() -> dict[str, str]:
    """What an answer depends on besides its prompt."""
    from importlib.metadata import version
    from platform import python_version

    return {
        "dflash-mlx": __version__,
        "mlx": version("mlx"),
        "mlx-lm": version("mlx-lm"),
        "python": python_version(),
    }
