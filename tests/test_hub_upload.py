"""Uploads, to a local server that speaks the hub's protocol."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from dflash_mlx.errors import DownloadError, UsageError
from dflash_mlx.hub import check_upload, fetch, upload
from dflash_mlx.loading import load

from . import convert_cases as cases
from .hub_server import HubServer

REPO = "user/small-pair"
# The hub client's own, in the protocol that it keeps for servers without the newer one.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """With a login; by Git LFS, as the hub's newer protocol is a closed library's."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with HubServer() as server:
        server.token = "hf_secret"
        yield server


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    target, draft = cases.write_target(tmp_path / "t"), cases.write_draft(tmp_path / "d")
    return cases.convert(target, tmp_path / "small-pair", draft)


def test_a_pair_goes_up_and_comes_down_as_it_was(
    hub: HubServer, pair: Path, tmp_path: Path
) -> None:
    check_upload(REPO, endpoint=hub.url)
    assert upload(pair, REPO, endpoint=hub.url).startswith(f"{hub.url}/{REPO}/commit/")
    folder = fetch(REPO, endpoint=hub.url, cache=tmp_path / "cache", quiet=True)
    there = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    here = {p.relative_to(pair): p.read_bytes() for p in pair.rglob("*") if p.is_file()}
    assert there == {name: data for name, data in here.items() if name.suffix != ".md"}
    assert load(str(folder), quiet=True).draft is not None
    assert (hub.repos[REPO].commits[folder.name]["README.md"]).startswith(b"---")


def test_what_is_there_is_not_sent_again(hub: HubServer, pair: Path) -> None:
    upload(pair, REPO, endpoint=hub.url)
    sent = dict(hub.objects)
    hub.objects = dict.fromkeys(sent, b"as it was")
    upload(pair, REPO, endpoint=hub.url)
    assert set(hub.objects.values()) == {b"as it was"}


def test_without_a_login(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(DownloadError, match="log in with `hf auth login`"):
        check_upload(REPO, endpoint=hub.url)


def test_where_one_may_not_write(hub: HubServer, pair: Path) -> None:
    hub.read_only.add(REPO)
    with pytest.raises(DownloadError, match="lets you not write there"):
        upload(pair, REPO, endpoint=hub.url)


def test_what_is_no_repo() -> None:
    with pytest.raises(UsageError, match="'small pair' is not a hub id; expected owner/name"):
        check_upload("small pair")


def test_a_hub_that_is_gone(pair: Path) -> None:
    with pytest.raises(DownloadError, match=r"not uploaded .*the folder is whole"):
        upload(pair, REPO, endpoint="http://127.0.0.1:9")
