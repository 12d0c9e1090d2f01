"""`python -m dflash_mlx.cli`, for where the script is not on the path."""

from . import app

app(prog_name="dflash-mlx")
