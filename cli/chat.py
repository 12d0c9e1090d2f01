"""`dflash-mlx chat`: parse, load, then one answer or a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dflash_mlx.errors import UsageError

from .once import answer_once, read_prompt
from .options import ModelOptions, SamplingOptions, SpeculationOptions, option, width
from .render import Screen
from .repl import talk
from .several import ShardOptions, follow, wire_memory

if TYPE_CHECKING:
    from dflash_mlx.guide import Guide
    from dflash_mlx.options import Options

EXAMPLES = """Examples:
  dflash-mlx chat
  dflash-mlx chat -m Qwen3-4B --bits 4 --think
  dflash-mlx chat -p "Name three prime numbers" --json
  dflash-mlx chat -p "Invent a person" --schema '{"properties": {"name": {"type": "string"}}}'
  git diff | dflash-mlx chat -p "Describe this change"
  dflash-mlx chat --raw -p "The capital of France is" -n 20"""


def _talk(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Conversation", *names, help=help, metavar=metavar)


def _output(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Output", *names, help=help, metavar=metavar)


@dataclass(frozen=True)
class ChatOptions:
    """What is asked, and how the answer is shown."""

    prompt: Annotated[
        str | None,
        _talk(
            "--prompt", "-p", help="Answer this and leave; piped text goes below it", metavar="TEXT"
        ),
    ] = None
    system: Annotated[str | None, _talk("--system", "-s", help="System prompt", metavar="TEXT")] = (
        None
    )
    think: Annotated[
        bool | None, _talk("--think/--no-think", help="Whether a model that can think should")
    ] = None
    raw: Annotated[bool, _talk("--raw", help="Send the prompt as it is, no chat template")] = False
    max_tokens: Annotated[
        int, _output("--max-tokens", "-n", help="Most tokens of an answer", metavar="N")
    ] = 1024
    schema: Annotated[
        str | None,
        _output(
            "--schema",
            help="Answer in JSON that is valid by this JSON schema, a file or the text itself",
            metavar="FILE|JSON",
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        _output("--stop", help="Text that ends an answer, repeatable", metavar="TEXT"),
    ] = None
    show_drafts: Annotated[
        bool, _output("--show-drafts", help="Colour the text that the draft proposed")
    ] = False
    json: Annotated[bool, _output("--json", help="Print text and figures as one JSON object")] = (
        False
    )
    logprobs: Annotated[
        int | None,
        _output(
            "--logprobs",
            help="With --json, each token's log-probability and those of the N likeliest",
            metavar="N",
        ),
    ] = None
    quiet: Annotated[bool, _output("--quiet", "-q", help="Print nothing but answers")] = False

    def check(self, prompt: str | None) -> None:
        """Refuse what makes no sense together."""
        wants = {"--raw": self.raw, "--json": self.json, "--schema": self.schema is not None}
        name = next((name for name, wanted in wants.items() if wanted), None)
        if prompt is None and name is not None:
            raise typer.BadParameter(f"{name} needs a prompt: use --prompt, or pipe one in")
        if self.raw and (self.system is not None or self.think is not None):
            name = "--think" if self.system is None else "--system"
            raise typer.BadParameter(f"{name} needs the chat template, which --raw leaves out")
        if self.logprobs is not None and not self.json:
            raise typer.BadParameter("--logprobs needs --json, which prints them")
        if self.json and self.show_drafts:
            raise typer.BadParameter("--show-drafts and --json exclude each other")

    def generation(self, sampling: SamplingOptions, speculation: SpeculationOptions) -> Options:
        """The library's form of the options."""
        from dflash_mlx.options import AUTO, Options

        return Options(
            max_tokens=self.max_tokens,
            sampling=sampling.sampling(),
            block=AUTO if speculation.block is None else width(speculation.block),
            lookup=speculation.lookup,
            stop=tuple(self.stop or ()),
            seed=sampling.seed,
            compiled=speculation.compile,
            logprobs=self.logprobs,
            guide=None if self.schema is None else read_guide(self.schema),
        )


def read_guide(schema: str) -> Guide:
    """The guide of a JSON schema: the text itself, which begins with a brace, or a file.

    Raises:
        UsageError: the file cannot be read, or the schema cannot be used.
    """
    from dflash_mlx.guide import Guide

    if schema.lstrip().startswith("{"):
        return Guide.json_schema(schema)
    try:
        return Guide.json_schema(Path(schema).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the schema {schema} cannot be read: {error}") from None


def chat(
    model: ModelOptions,
    ask: ChatOptions,
    sampling: SamplingOptions,
    speculation: SpeculationOptions,
    several: ShardOptions,
) -> None:
    """Talk to a model, or have one prompt answered.

    Without a prompt this opens a conversation; /help lists its commands.
    """
    ranks = several.join()
    if not ranks.leads:
        follow(ranks, lambda: model.load(True, ranks))
        return
    # A launcher keeps stdin open for good, so there it is read line by line or not at all.
    alone = ranks.size == 1
    prompt = ranks.together(lambda: read_prompt(ask.prompt, ask.raw, piped=alone))
    ask.check(prompt)
    screen = Screen(quiet=ask.quiet)
    options = ask.generation(sampling, speculation)
    if screen.err.is_terminal:
        screen.note(f"loading {model.model} ...")
    pair = model.load(ask.quiet, ranks)
    wire_memory()
    with ranks.lead():
        if prompt is None:
            talk(pair, options, ask, screen)
        else:
            answer_once(pair, prompt, options, ask, screen)
