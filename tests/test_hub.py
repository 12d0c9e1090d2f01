import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dflash_mlx.errors import CheckpointError, DFlashError, DownloadError, ModelNotFoundError
from dflash_mlx.hub import fetch, is_repo_id

from .hub_server import HubServer

REPO = "owner/model"
WEIGHTS = os.urandom(300_000)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def get(hub: HubServer, tmp_path: Path) -> Callable[..., Path]:
    """`fetch` from the local server into a cache of this test."""

    def get(repo: str = REPO, *, revision: str | None = None) -> Path:
        cache = tmp_path / "cache"
        return fetch(repo, revision=revision, quiet=True, endpoint=hub.url, cache=cache)

    return get


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def model(hub: HubServer, tmp_path: Path) -> str:
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "chat_template.jinja": b"x"}
    return hub.add(REPO, folder_of(tmp_path / "model", files))


def test_a_repo_arrives_whole_and_stays_cached(hub, get, model):
    folder = get()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert sorted(p.name for p in folder.iterdir()) == [
        *("chat_template.jinja", "config.json", "model.safetensors")
    ]
    assert get() == folder
    assert hub.served["model.safetensors"] == len(WEIGHTS)


def test_code_and_pickles_are_not_downloaded(hub, get, tmp_path):
    unwanted = ["modeling_x.py", "pytorch_model.bin", "model.pt", "a/b.py", "README.md"]
    wanted = ["config.json", "tokenizer.model", "merges.txt", "model-00001-of-00001.safetensors"]
    hub.add(REPO, folder_of(tmp_path / "m", dict.fromkeys(unwanted + wanted, b"{}")))
    assert sorted(p.name for p in get().iterdir()) == sorted(wanted)
    assert not set(unwanted) & set(hub.served)


def test_code_stays_out_even_when_the_caller_asks_for_everything(hub, tmp_path):
    hub.add(REPO, folder_of(tmp_path / "m", {"config.json": b"{}", "evil.py": b"", "w.bin": b""}))
    folder = fetch(REPO, patterns=["*"], quiet=True, endpoint=hub.url, cache=tmp_path / "cache")
    assert [p.name for p in folder.iterdir()] == ["config.json"]


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, get, tmp_path):
    old = hub.add(REPO, folder_of(tmp_path / "old", {"config.json": b'"old"'}), revision="v1")
    hub.add(REPO, folder_of(tmp_path / "new", {"config.json": b'"new"'}))
    assert (get() / "config.json").read_bytes() == b'"new"'
    assert (get(revision="v1") / "config.json").read_bytes() == b'"old"'
    assert get(revision=old) == get(revision="v1")
    assert get(revision=old).name == old


def test_a_dropped_connection_is_taken_up_where_it_stopped(hub, get, model, monkeypatch):
    # The client keeps what it has in whole chunks, of 10 MB unless told otherwise.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.break_after["model.safetensors"] = 100_000
    assert (get() / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.ranges == ["bytes=100000-"]
    assert hub.served["model.safetensors"] == len(WEIGHTS)


def test_after_a_failure_for_good_only_what_is_missing_is_fetched(hub, get, tmp_path):
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    hub.add(REPO, folder_of(tmp_path / "m", {name: name.encode() * 999 for name in shards}))
    hub.file_status[shards[1]] = 503
    with pytest.raises(DownloadError, match=r"owner/model: the hub answered HTTP 503; run the"):
        get()
    hub.file_status.clear()
    folder = get()
    assert all((folder / name).read_bytes() == name.encode() * 999 for name in shards)
    assert all(hub.served[name] == len(name) * 999 for name in shards)


def test_a_connection_that_keeps_dropping_is_one_line(hub, get, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)

    class Always(dict[str, int]):
        def pop(self, *_: object) -> int:
            return 0

    hub.break_after = Always()
    with pytest.raises(DownloadError, match=r"broke off \(.+\); run the command again"):
        get()


def test_an_unknown_repo_and_an_unknown_revision(get, model):
    with pytest.raises(ModelNotFoundError, match=r"owner/none is not on the hub or is private"):
        get("owner/none")
    with pytest.raises(ModelNotFoundError, match=r"owner/model has no revision 'v9'"):
        get(revision="v9")
    with pytest.raises(ModelNotFoundError, match=r"'a/b/c' is not a hub id; expected owner/name"):
        get("a/b/c")


def test_a_gated_repo_says_how_to_log_in(hub, get, model):
    hub.repos[REPO].gated = True
    with pytest.raises(DownloadError, match=r"owner/model is gated; ask .*, then log in with `hf"):
        get()


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (403, {}, "refused access .HTTP 403.; log in with"),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            "refused access .HTTP 401.; log in with",
        ),
        (404, {}, "answered HTTP 404"),
    ],
)
def test_other_refusals_name_their_status(hub, get, model, status, headers, message):
    hub.status, hub.info = status, headers
    with pytest.raises(DownloadError, match=message):
        get()


def test_no_server_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with HubServer() as gone:
        url = gone.url
    with pytest.raises(DownloadError, match="not in the cache and the hub cannot be reached"):
        fetch(REPO, quiet=True, endpoint=url, cache=tmp_path)


def test_a_full_disk_is_one_line(get, model, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    monkeypatch.setattr("huggingface_hub.file_download._chmod_and_move", full)
    with pytest.raises(DownloadError, match="owner/model: the disk is full; free some space"):
        get()


def test_missing_shards_are_noticed(hub, get, tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": b"x",
    }
    hub.add(REPO, folder_of(tmp_path / "m", files))
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing, .*model-2.safetensors"):
        get()


def test_shards_nobody_asked_for_are_not_missed(hub, tmp_path):
    index = json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode()
    hub.add(REPO, folder_of(tmp_path / "m", {"model.safetensors.index.json": index}))
    fetch(REPO, patterns=["*.json"], quiet=True, endpoint=hub.url, cache=tmp_path / "cache")


def in_process(code: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `code` where the hub client reads its own variables, as it does at import."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **variables}
    code = f"from dflash_mlx.hub import fetch\n{code}"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_hub_clients_own_variables_are_honoured(hub, model, tmp_path):
    home = tmp_path / "home"
    done = in_process(f"print(fetch({REPO!r}))", home, HF_ENDPOINT=hub.url)
    assert Path(done.stdout.strip()).is_relative_to(home), done.stderr
    assert hub.served["model.safetensors"] == len(WEIGHTS)
    with HubServer() as gone:
        url = gone.url
    again = in_process(f"print(fetch({REPO!r}))", home, HF_HUB_OFFLINE="1", HF_ENDPOINT=url)
    assert again.stdout == done.stdout


def test_offline_and_not_cached(tmp_path):
    miss = in_process(f"fetch({REPO!r})", tmp_path, HF_HUB_OFFLINE="1")
    last = miss.stderr.strip().splitlines()[-1]
    assert last.endswith(
        f"DownloadError: {REPO} is not in the cache and HF_HUB_OFFLINE is set; unset it"
    )


@pytest.mark.parametrize("quiet", [True, False])
def test_progress_goes_to_stderr_unless_quiet(hub, model, tmp_path, quiet):
    code = f"fetch({REPO!r}, quiet={quiet})"
    done = in_process(code, tmp_path / "home", HF_ENDPOINT=hub.url, TQDM_POSITION="-1")
    assert (done.returncode, done.stdout) == (0, "")
    assert ("Fetching" in done.stderr) is not quiet


@pytest.mark.parametrize("name", ["Qwen/Qwen3-4B", "z-lab/Qwen3.5-9B-DFlash", "a/b"])
def test_repo_ids(name):
    assert is_repo_id(name)


@pytest.mark.parametrize(
    "name", ["Qwen3-4B", "/abs/path", "./a/b", "a/b/c", "a/", "a/..", "a b/c", ""]
)
def test_not_repo_ids(name):
    assert not is_repo_id(name)


def test_every_error_is_one_line(get, model):
    for repo, revision in [("owner/none", None), (REPO, "v9"), ("a/b/c", None)]:
        with pytest.raises(DFlashError) as caught:
            get(repo, revision=revision)
        assert "\n" not in str(caught.value)
