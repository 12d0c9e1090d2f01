"""Where this package keeps files of its own, and how files and folders get there whole."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError


def cache_root() -> Path:
    """The user's cache folder for this package; it need not exist yet.

    `~/Library/Caches/dflash-mlx` on macOS, `$XDG_CACHE_HOME/dflash-mlx` elsewhere, with
    `~/.cache` where the variable is unset or, as its specification asks, not absolute.
    """
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "dflash-mlx"
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = given if given.is_absolute() else Path.home() / ".cache"
    return base / "dflash-mlx"


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside `final` that becomes `final` if the block ends well.

    After an error or Ctrl-C nothing of it stays. Raises OSError if `final` exists by then
    and is not an empty folder.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp is for the owner alone; the folder inside it follows the user's umask.
    scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        folder = scratch / final.name
        folder.mkdir()
        yield folder
        folder.rename(final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            whole = Path(scratch, path.name)
            whole.write_text(text, encoding="utf-8")
            os.replace(whole, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
