"""The command line: `dflash-mlx`, one file a command."""

from .main import app

__all__ = ["app"]
