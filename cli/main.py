"""The Typer app: what all commands share, and one line for each of them."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dflash_mlx import __version__
from dflash_mlx.errors import DFlashError

from .bench import bench
from .chat import EXAMPLES as CHAT_EXAMPLES
from .chat import chat
from .convert import EXAMPLES as CONVERT_EXAMPLES
from .convert import convert
from .doctor import EXAMPLES as DOCTOR_EXAMPLES
from .doctor import doctor
from .models import EXAMPLES as MODELS_EXAMPLES
from .models import models
from .options import flags
from .serve import EXAMPLES as SERVE_EXAMPLES
from .serve import serve
from .train import train
from .tune import tune
from .verify import EXAMPLES as VERIFY_EXAMPLES
from .verify import verify


class Group(TyperGroup):
    """Prints a DFlashError as one line and exits 1; anything else is a bug and keeps its trace."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DFlashError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo(err=True)
            raise typer.Exit(130) from None


def show_version(wanted: bool) -> None:
    """Print the version and leave, if asked to."""
    if wanted:
        typer.echo(f"dflash-mlx {__version__}")
        raise typer.Exit


def start(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version", is_eager=True, callback=show_version),
    ] = False,
) -> None:
    """DFlash speculative decoding, native to MLX."""
    # An answer may hold characters that a terminal with an old encoding cannot show.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


app = typer.Typer(
    cls=Group,
    callback=start,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=CHAT_EXAMPLES)(flags(chat))
app.command(epilog=MODELS_EXAMPLES)(models)
app.command(epilog=SERVE_EXAMPLES)(flags(serve))
app.command(epilog=DOCTOR_EXAMPLES)(flags(doctor))
app.command(epilog=VERIFY_EXAMPLES)(flags(verify))
app.command(epilog=CONVERT_EXAMPLES)(flags(convert))
app.add_typer(bench)
app.add_typer(tune)
app.add_typer(train)
