"""Options that several commands share, in groups: a dataclass a group, a field an option.

A command takes whole groups, `flags` shows them to Typer as single options:

    @flags
    def bench(model: ModelOptions, speculation: SpeculationOptions) -> None: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from dflash_mlx.blas import prefer_openblas
from dflash_mlx.pairs import EMBEDDED
from dflash_mlx.span import SINK

if TYPE_CHECKING:
    from dflash_mlx.loading import Pair
    from dflash_mlx.ranks import Ranks
    from dflash_mlx.sampling import Sampling

Bits = Literal["4", "8"]
Dtype = Literal["float32", "bfloat16", "float16"]
Use = Literal["auto", "on", "off"]


def option(panel: str, *names: str, help: str, metavar: str | None = None) -> Any:
    """An option in a panel of the help page."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel)


def _model(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Model", *names, help=help, metavar=metavar)


def _sampling(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Sampling", *names, help=help, metavar=metavar)


def _speculation(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Speculation", *names, help=help, metavar=metavar)


# Of one pair in most commands, of several in `bench`.
KvGroupSize = Annotated[
    int,
    _model(
        "--kv-group-size",
        help="Elements of them that share a scale: 32, 64 or 128",
        metavar="N",
    ),
]
DraftWindow = Annotated[
    int | None,
    _model(
        "--draft-window",
        help="Full layers of the draft see the last so many tokens alone",
        metavar="N",
    ),
]
DraftSink = Annotated[int, _model("--draft-sink", help="And the first so many", metavar="N")]
ComputedIn = Annotated[
    Dtype | None,
    _model(
        "--dtype",
        help="float32, bfloat16 or float16; by default the files' own, float32 on a CPU",
        metavar="TYPE",
    ),
]
KernelUse = Annotated[
    Use,
    _model(
        "--kernels",
        help="Metal kernels: auto where they pay, on wherever they run, off",
        metavar="WHEN",
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """Which target and draft, and how they are loaded."""

    model: Annotated[
        str,
        _model("--model", "-m", help="Target: a short name, a hub id or a folder", metavar="NAME"),
    ] = EMBEDDED
    draft: Annotated[
        str | None,
        _model(
            "--draft",
            "-d",
            help="Draft: a hub id or a folder; known pairs need none",
            metavar="NAME",
        ),
    ] = None
    no_draft: Annotated[bool, _model("--no-draft", help="Load no draft and decode plainly")] = False
    bits: Annotated[Bits | None, _model("--bits", help="Quantise the target while loading")] = None
    draft_bits: Annotated[
        Bits | None, _model("--draft-bits", help="Quantise the draft while loading")
    ] = None
    kv_bits: Annotated[
        Bits | None, _model("--kv-bits", help="Keep the target's keys and values in so many bits")
    ] = None
    draft_kv_bits: Annotated[
        Bits | None, _model("--draft-kv-bits", help="Keep the draft's keys and values in so many")
    ] = None
    kv_group_size: KvGroupSize = 64
    draft_window: DraftWindow = None
    draft_sink: DraftSink = SINK
    dtype: ComputedIn = None
    kernels: KernelUse = "auto"
    revision: Annotated[
        str | None,
        _model("--revision", help="Branch, tag or commit of the target on the hub", metavar="NAME"),
    ] = None
    draft_revision: Annotated[
        str | None, _model("--draft-revision", help="The same for the draft", metavar="NAME")
    ] = None

    def __post_init__(self) -> None:
        unused = {
            "--draft": self.draft,
            "--draft-bits": self.draft_bits,
            "--draft-revision": self.draft_revision,
            "--draft-window": self.draft_window,
            "--draft-kv-bits": self.draft_kv_bits,
        }
        for name, value in unused.items():
            if self.no_draft and value is not None:
                raise typer.BadParameter(f"{name} and --no-draft exclude each other")

    def load(self, quiet: bool, ranks: Ranks | None = None) -> Pair:
        """Load the pair, or this rank's part of it."""
        from dflash_mlx.loading import load
        from dflash_mlx.ranks import ALONE

        return load(
            self.model,
            self.draft,
            speculate=not self.no_draft,
            bits=int(self.bits) if self.bits else None,
            draft_bits=int(self.draft_bits) if self.draft_bits else None,
            dtype=self.dtype,
            kernels=self.kernels,
            kv_bits=int(self.kv_bits) if self.kv_bits else None,
            draft_kv_bits=int(self.draft_kv_bits) if self.draft_kv_bits else None,
            kv_group_size=self.kv_group_size,
            draft_window=self.draft_window,
            draft_sink=self.draft_sink,
            revision=self.revision,
            draft_revision=self.draft_revision,
            quiet=quiet,
            ranks=ranks or ALONE,
        )


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen."""

    temperature: Annotated[
        float, _sampling("--temperature", "-t", help="0 takes the most probable token", metavar="X")
    ] = 0.0
    top_p: Annotated[
        float,
        _sampling(
            "--top-p", help="Keep the likeliest tokens of this total probability", metavar="X"
        ),
    ] = 1.0
    top_k: Annotated[
        int, _sampling("--top-k", help="Keep this many tokens, 0 for all", metavar="N")
    ] = 0
    min_p: Annotated[
        float,
        _sampling(
            "--min-p", help="Keep tokens this probable relative to the likeliest", metavar="X"
        ),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        _sampling(
            "--repetition-penalty", help="Make recent tokens less likely, 1 for none", metavar="X"
        ),
    ] = 1.0
    presence_penalty: Annotated[
        float,
        _sampling(
            "--presence-penalty", help="Subtract from the logits of recent tokens", metavar="X"
        ),
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        _sampling(
            "--frequency-penalty", help="The same for each time a token occurred", metavar="X"
        ),
    ] = 0.0
    logit_bias: Annotated[
        list[str] | None,
        _sampling("--logit-bias", help="Add to a token's logit, repeatable", metavar="ID=VALUE"),
    ] = None
    seed: Annotated[
        int | None, _sampling("--seed", help="Number that reproduces a sampled answer", metavar="N")
    ] = None

    def sampling(self) -> Sampling:
        """The library's form of these options."""
        from dflash_mlx.sampling import Sampling

        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple(_bias(text) for text in self.logit_bias or ()),
        )


@dataclass(frozen=True)
class SpeculationOptions:
    """How drafts are used."""

    block: Annotated[
        str | None,
        _speculation(
            "--block",
            help="Tokens verified per round, or auto: as many as promise to pay; by default auto "
            "in chat, else the draft's own number",
            metavar="N",
        ),
    ] = None
    lookup: Annotated[
        Use,
        _speculation(
            "--lookup",
            help="Drafts copied from the text so far: auto with --block auto, on with any, off",
            metavar="WHEN",
        ),
    ] = "auto"
    compile: Annotated[
        bool | None,
        _speculation(
            "--compile/--no-compile", help="Compile the passes of a round; by default where it pays"
        ),
    ] = None


def width(text: str | None) -> int | Literal["auto"] | None:
    """The library's form of a number of tokens verified per round."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a number nor auto", param_hint="--block")
    return int(text)


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not ID=VALUE, as in 42=-100", param_hint="--logit-bias"
        ) from None


def flags(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options: Typer sees every field as an option of its own."""
    groups: dict[str, type] = {
        name: kind for name, kind in get_type_hints(command).items() if name != "return"
    }
    hints = {
        k: v for g in groups.values() for k, v in get_type_hints(g, include_extras=True).items()
    }

    def run(**values: Any) -> None:
        prefer_openblas()  # has to come before the first import of MLX
        built = {
            name: group(**{field.name: values[field.name] for field in fields(group)})
            for name, group in groups.items()
        }
        command(**built)

    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for group in groups.values()
        for field in fields(group)
    ]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = hints
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
