"""`dflash-mlx verify`: plain against speculative decoding, greedy and sampled."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dflash_mlx.errors import UsageError
from dflash_mlx.pairs import EMBEDDED

from .once import check_utf8, read_stdin
from .options import ModelOptions, SamplingOptions, SpeculationOptions, option, width
from .ready import make_ready
from .render import Screen
from .several import wire_memory
from .verdict import Found, lines, record

if TYPE_CHECKING:
    from dflash_mlx.loading import Pair
    from dflash_mlx.options import Options

EXAMPLES = """Examples:
  dflash-mlx verify smollm2-135m
  dflash-mlx verify Qwen3-8B --bits 4 --max-tokens 256 --samples 8
  dflash-mlx verify ./target --draft ./draft --dtype float32 --block 16
  dflash-mlx verify Qwen3-4B --data prompts.jsonl --json"""

BUILT_IN = (
    "Explain in a few sentences why the sky is blue.",
    "Write a Python function that checks whether a word is a palindrome.",
    "A train leaves at 14:35 and needs 2 hours and 50 minutes. When does it arrive? Think aloud.",
    "Übersetze ins Englische: Wer zuletzt lacht, lacht am besten.",
)


def _compared(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Comparison", *names, help=help, metavar=metavar)


@dataclass(frozen=True)
class PairOptions(ModelOptions):
    """Which pair; decoding without the draft is the other half of every comparison."""

    model: Annotated[
        str, typer.Argument(help="Target: a short name, a hub id or a folder", metavar="MODEL")
    ] = EMBEDDED
    no_draft: Annotated[bool, typer.Option("--no-draft", hidden=True)] = False

    def __post_init__(self) -> None:
        if self.no_draft:
            raise typer.BadParameter("verify compares with and without a draft; leave out this one")


@dataclass(frozen=True)
class SampledOptions(SamplingOptions):
    """How sampled texts are drawn; greedy ones take everything but the temperature from here."""

    temperature: Annotated[
        float,
        option("Sampling", "--temperature", "-t", help="Of the sampled texts", metavar="X"),
    ] = 1.0
    seed: Annotated[
        int, option("Sampling", "--seed", help="Of the first sampled text", metavar="N")
    ] = 0


@dataclass(frozen=True)
class VerifyOptions:
    """What is compared, and how it is shown."""

    prompt: Annotated[
        list[str] | None,
        _compared("--prompt", "-p", help="Compare on this, repeatable", metavar="TEXT"),
    ] = None
    data: Annotated[
        Path | None,
        _compared("--data", help='Compare on every line, as in {"prompt": "..."}', metavar="FILE"),
    ] = None
    raw: Annotated[bool, _compared("--raw", help="Send prompts as they are, no chat template")] = (
        False
    )
    max_tokens: Annotated[
        int, _compared("--max-tokens", "-n", help="Most tokens of a text", metavar="N")
    ] = 64
    samples: Annotated[
        int, _compared("--samples", help="Sampled texts per prompt, 0 for none", metavar="N")
    ] = 1
    json: Annotated[bool, option("Output", "--json", help="Print one JSON object")] = False
    quiet: Annotated[bool, option("Output", "--quiet", "-q", help="Show no progress")] = False

    def check(self, sampling: SamplingOptions) -> None:
        """Refuse what makes no sense together."""
        if self.prompt and self.data is not None:
            raise typer.BadParameter("--prompt and --data exclude each other")
        if self.max_tokens < 2:
            raise typer.BadParameter("--max-tokens needs 2 at least: the first is never drafted")
        if self.samples < 0:
            raise typer.BadParameter("--samples counts texts; it cannot be negative")
        if self.samples and sampling.temperature == 0:
            raise typer.BadParameter(
                "--temperature 0 samples nothing; use --samples 0 to compare greedy texts alone"
            )

    def prompts(self) -> Sequence[str]:
        """The given prompts, those of the file, what is piped in, or the built-in ones."""
        if self.data is not None:
            return read_data(self.data)
        if self.prompt:
            return [_sound(text) for text in self.prompt]
        return _piped() or BUILT_IN


def verify(
    model: PairOptions,
    how: VerifyOptions,
    sampling: SampledOptions,
    speculation: SpeculationOptions,
) -> None:
    """Check that speculative decoding gives what the target alone gives.

    Greedy texts must be equal token for token, or differ only where two tokens
    are tied within rounding. Sampled texts must come again with the same seed
    and follow the target's distribution. Exits 1 if anything else is found.
    The comparison is sharpest in float32, where ties are rarest.
    """
    how.check(sampling)
    prompts = how.prompts()
    screen = Screen(quiet=how.quiet)
    if screen.err.is_terminal:
        screen.note(f"loading {model.model} ...")
    options = _options(how, sampling, speculation)
    pair = model.load(how.quiet)
    wire_memory()
    make_ready(pair, options, screen)
    found = compare_all(pair, prompts, how, options, screen)
    if how.json:
        typer.echo(jsonlib.dumps(record(pair, found, options), ensure_ascii=False))
    else:
        for line in lines(pair, found, options):
            typer.echo(line)
    if found.verdict == "bug":
        raise typer.Exit(1)


def compare_all(
    pair: Pair, prompts: Sequence[str], how: VerifyOptions, options: Options, screen: Screen
) -> Found:
    """Compare on every prompt, with a bar in a terminal."""
    from dflash_mlx.exactness import sample
    from dflash_mlx.verification import compare

    raw = how.raw or not pair.tokenizer.has_chat_template
    encoded = [_encode(pair, prompt, raw) for prompt in prompts]
    greedy, sampled = [], []
    assert options.seed is not None
    with _bar(screen, len(prompts) * (1 + how.samples)) as step:
        for ids in encoded:
            step("greedy")
            greedy.append(compare(pair, ids, options))
        for index, ids in enumerate(encoded * how.samples):
            step("sampled")
            # Every text its own seed: places of all of them are tested together.
            seed = (options.seed + index) % 2**32
            sampled.append(sample(pair, ids, replace(options, seed=seed)))
    return Found(tuple(prompts), tuple(greedy), tuple(sampled))


def read_data(path: Path) -> list[str]:
    """Prompts of a file with one JSON object or string a line.

    Raises:
        UsageError: the file cannot be read, or a line holds no prompt.
    """
    try:
        rows = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{path} cannot be read: {reason}") from error
    prompts = [_prompt(row, f"{path}, line {i}") for i, row in enumerate(rows, 1) if row.strip()]
    if not prompts:
        raise UsageError(f'{path} is empty; expected lines like {{"prompt": "..."}}')
    return prompts


def _prompt(row: str, where: str) -> str:
    try:
        value = jsonlib.loads(row)
    except (ValueError, RecursionError):
        raise UsageError(f"{where} is not valid JSON") from None
    text = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f'{where} holds no prompt; expected {{"prompt": "..."}} or a string')
    return text


def _sound(text: str) -> str:
    if not text.strip():
        raise UsageError("the prompt is empty; leave out --prompt for built-in ones")
    check_utf8(text)
    return text


def _piped() -> Sequence[str]:
    """What is piped in, as one prompt; none where that is blank."""
    if sys.stdin is None or sys.stdin.isatty():
        return ()
    text = read_stdin().strip("\n")
    return (text,) if text.strip() else ()


def _encode(pair: Pair, prompt: str, raw: bool) -> list[int]:
    if raw:
        return pair.encode(prompt)
    from dflash_mlx.conversation import Conversation

    conversation = Conversation(pair)
    conversation.messages.append({"role": "user", "content": prompt})
    return conversation.prompt_ids


def _options(
    how: VerifyOptions, sampling: SamplingOptions, speculation: SpeculationOptions
) -> Options:
    from dflash_mlx.options import Options

    return Options(
        max_tokens=how.max_tokens,
        sampling=sampling.sampling(),
        block=width(speculation.block),
        lookup=speculation.lookup,
        seed=sampling.seed,
        compiled=speculation.compile,
    )


@contextmanager
def _bar(screen: Screen, total: int) -> Iterator[Any]:
    columns = (TextColumn("[dim]{task.description}"), BarColumn(), MofNCompleteColumn())
    wanted = screen.err.is_terminal and not screen.quiet
    with Progress(
        *columns, TimeElapsedColumn(), console=screen.err, transient=True, disable=not wanted
    ) as bar:
        task = bar.add_task("", total=total, completed=-1)

        def step(kind: str) -> None:
            bar.update(task, description=f"{kind} texts", advance=1)

        yield step
