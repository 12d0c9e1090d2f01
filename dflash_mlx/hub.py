"""Model folders and single files of data sets from the Hugging Face hub, and folders to it.

The hub's own client does the work: its cache, its variables (HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE, HF_TOKEN), its progress bars on stderr. A connection that drops is taken up again
where it stopped; after a failure for good, files that were complete are not fetched again.
Left to do here: choose the files, and turn whatever goes wrong into one clear line.
"""

import errno
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The base of every transport error, of httpx or (hub client 2) httpx2.
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # isort: skip
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # isort: skip
    get_session,
    tqdm,
    validate_repo_id,
)

from .checkpoint import INDEX, shard_names
from .errors import CheckpointError, DFlashError, DownloadError, ModelNotFoundError, UsageError

MODEL_FILES = (
    *("*.json", "model*.safetensors", "tokenizer.model"),
    *("*.tiktoken", "*.jinja", "*.txt"),
    *("target/model*.safetensors", "draft/model*.safetensors"),  # of a pair's folder
)
NEVER = ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

LOGIN = "log in with `hf auth login` or set HF_TOKEN"
AGAIN = "run the command again, complete files are kept"
REACHABLE = 5.0  # seconds that the hub has to answer at all


class _NoBar(tqdm):
    """A progress bar that shows nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        untyped: Any = super()
        untyped.__init__(*args, **{**kwargs, "disable": True})


def fetch(
    repo: str,
    *,
    revision: str | None = None,
    patterns: Sequence[str] = MODEL_FILES,
    quiet: bool = False,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Path:
    """Download `owner/name` at `revision` (branch, tag or commit) and return its folder.

    Only files that match `patterns` are fetched, and never code or pickles. `endpoint` and
    `cache` replace the hub client's own choice of server and folder.

    Raises ModelNotFoundError for an unknown repo or revision, DownloadError for a gated one, no
    network, a broken connection or a full disk, CheckpointError if shards are missing.
    """
    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(NEVER),
            endpoint=endpoint,
            cache_dir=cache,
            tqdm_class=_NoBar if quiet else None,
        )
    except (HTTPError, HFValidationError, OSError, RuntimeError) as error:
        raise _explain(error, repo, revision) from error
    _check_shards(Path(folder), repo, patterns)
    return Path(folder)


def fetch_data(
    repo: str,
    file: str,
    *,
    revision: str,
    quiet: bool = False,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Path:
    """Download one file of the data set `owner/name` at a commit, and return where it lies.

    A file that is cached needs no network; where the hub does not answer, this fails in seconds.

    Raises ModelNotFoundError for an unknown data set or revision, CheckpointError if it has no
    such file, DownloadError for a gated one, no network, a broken connection or a full disk.
    """
    get = partial(
        hf_hub_download,
        repo,
        file,
        repo_type="dataset",
        revision=revision,
        endpoint=endpoint,
        cache_dir=cache,
        tqdm_class=_NoBar if quiet else None,
    )
    with suppress(LocalEntryNotFoundError):
        return Path(get(local_files_only=True))
    try:
        _reach(repo, endpoint or constants.ENDPOINT)
        return Path(get())
    except RemoteEntryNotFoundError as error:
        raise CheckpointError(f"{repo} has no file {file} at revision {revision[:12]}") from error
    except (HTTPError, HFValidationError, OSError, RuntimeError) as error:
        raise _explain(error, repo, revision) from error


def _reach(repo: str, endpoint: str) -> None:
    """Refuse at once where nothing answers: the client itself would try for half a minute."""
    try:
        status = get_session().head(endpoint, timeout=REACHABLE).status_code
    except HTTPError as error:
        raise DownloadError(f"{repo}: {endpoint} cannot be reached; check the network") from error
    if status >= 500:
        raise DownloadError(f"{repo}: {endpoint} answered HTTP {status}; {AGAIN}")


def check_upload(repo: str, *, endpoint: str | None = None) -> None:
    """Find out, before hours of work, whether anything could be uploaded.

    Raises UsageError if `repo` is no `owner/name`, DownloadError without a login or a network.
    """
    if not is_repo_id(repo):
        raise UsageError(f"{repo!r} is not a hub id; expected owner/name")
    try:
        HfApi(endpoint=endpoint).whoami()
    except LocalTokenNotFoundError:
        raise DownloadError(f"nothing can be uploaded without a login; {LOGIN}") from None
    except (HTTPError, OSError, RuntimeError) as error:
        raise _explain_upload(error, repo) from error


def upload(folder: Path, repo: str, *, endpoint: str | None = None) -> str:
    """Upload a folder to `owner/name`, made if it is not there, and return the commit's address.

    Files that lie there already and have not changed are not sent again.

    Raises DownloadError if the hub refuses, cannot be reached or breaks off.
    """
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(repo, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"{folder.name}, by dflash-mlx convert"
        )
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _explain_upload(error, repo) from error
    return str(done.commit_url)


def _explain_upload(error: Exception, repo: str) -> DownloadError:
    again = "the folder is whole; once that is mended, `hf upload` sends it"
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return DownloadError(f"{repo}: the hub lets you not write there; {LOGIN}")
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DownloadError(f"{repo}: not uploaded ({reason}); {again}")


def is_repo_id(name: str) -> bool:
    """Whether `name` has the form `owner/name` of a model on the hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def _check_shards(folder: Path, repo: str, patterns: Sequence[str]) -> None:
    if not (folder / INDEX).is_file():
        return
    shards = {n for n in shard_names(folder).values() if any(fnmatch(n, p) for p in patterns)}
    if absent := sorted(name for name in shards if not (folder / name).is_file()):
        raise CheckpointError(
            f"{repo}: {len(absent)} of {len(shards)} shards are missing, among them {absent[0]}; "
            "the repo is incomplete, or the cached copy is: delete it and download it again"
        )


def _explain(error: Exception, repo: str, revision: str | None) -> DFlashError:
    """One line for whatever the hub client raised."""
    match error:
        case HFValidationError():
            return ModelNotFoundError(f"{repo!r} is not a hub id; expected owner/name")
        case GatedRepoError():
            return DownloadError(
                f"{repo} is gated; ask for access at https://huggingface.co/{repo}, then {LOGIN}"
            )
        case RevisionNotFoundError():
            return ModelNotFoundError(
                f"{repo} has no revision {revision!r}; expected a branch, a tag or a commit of it"
            )
        case RepositoryNotFoundError():
            return ModelNotFoundError(
                f"{repo} is not on the hub or is private; check the name; if it is private, {LOGIN}"
            )
        case HfHubHTTPError():
            return _explain_status(error, repo)
        case OfflineModeIsEnabled():
            return DownloadError(f"{repo} is not in the cache and HF_HUB_OFFLINE is set; unset it")
        case LocalEntryNotFoundError():
            return _explain_not_cached(error, repo, revision)
    return _explain_broken(error, repo)


def _explain_status(error: HfHubHTTPError, repo: str) -> DFlashError:
    status = error.response.status_code
    if status in (401, 403):
        return DownloadError(f"{repo}: the hub refused access (HTTP {status}); {LOGIN}")
    if status == 429:
        return DownloadError(f"{repo}: too many requests to the hub; wait a few minutes or {LOGIN}")
    return DownloadError(f"{repo}: the hub answered HTTP {status}; {AGAIN}")


def _explain_not_cached(error: Exception, repo: str, revision: str | None) -> DFlashError:
    # The client wraps what went wrong on the network in "not in the cache either".
    if isinstance(error.__cause__, (HfHubHTTPError, OfflineModeIsEnabled)):
        return _explain(error.__cause__, repo, revision)
    return DownloadError(f"{repo} is not in the cache and the hub cannot be reached; {AGAIN}")


def _explain_broken(error: Exception, repo: str) -> DFlashError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(f"{repo}: the disk is full; free some space and {AGAIN}")
    if isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else ""
        return DownloadError(f"{repo} could not be stored: {error.strerror}{place}")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DownloadError(f"{repo}: the download broke off ({reason}); {AGAIN}")
