"""A pair's folder: loaded as a whole, and refused if any part is another's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dflash_mlx import pairfile
from dflash_mlx.errors import CheckpointError, DFlashError, PairError
from dflash_mlx.loading import load

from . import convert_cases as cases


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    target, draft = cases.write_target(tmp_path / "t"), cases.write_draft(tmp_path / "d")
    return cases.convert(target, tmp_path / "pair", draft)


def test_what_it_says(pair: Path) -> None:
    stated = json.loads((pair / "pair.json").read_text())
    assert stated["draft"]["taps"] == [0, 2]
    assert stated["target"]["source"].endswith("/t")
    for part in ("target", "draft"):
        (name, file), *_ = stated[part]["files"].items()
        assert file["size"] == (pair / part / name).stat().st_size
        assert len(file["sha256"]) == 64


def test_a_pair_is_loaded_by_its_folder(pair: Path) -> None:
    found = load(str(pair), quiet=True)
    assert found.draft is not None
    assert (found.name, found.draft_name) == (str(pair), f"{pair}/draft")
    assert load(str(pair), speculate=False, quiet=True).draft is None


def test_another_draft_can_be_named(pair: Path, tmp_path: Path) -> None:
    assert load(str(pair), str(tmp_path / "d"), quiet=True).draft_name == str(tmp_path / "d")


def test_a_moved_pair_is_the_same(pair: Path, tmp_path: Path) -> None:
    pair.rename(tmp_path / "moved")
    assert load(str(tmp_path / "moved"), quiet=True).draft is not None


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    def change(pair: Path) -> None:
        path = pair / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def taps(pair: Path) -> None:
    """A draft that is right in itself, with other taps."""
    config = cases.DRAFT | {"dflash_config": cases.DRAFT["dflash_config"] | {"block_size": 8}}
    shutil.rmtree(pair / "draft")
    cases.write_draft(pair / "draft", config)


def grow(pair: Path) -> None:
    with (pair / "target" / "model.safetensors").open("ab") as file:
        file.write(b"more")


def add(pair: Path) -> None:
    """mlx-lm would read it, too."""
    shutil.copy(pair / "target" / "model.safetensors", pair / "target" / "model-2.safetensors")


DIFFERENT = {
    "target.config": edit("target/config.json", rope_theta=5e5),
    "target.tokenizer": edit("target/tokenizer.json", truncation=None, version="2.0"),
    "target.chat_template": lambda pair: (pair / "target" / "chat_template.jinja").write_text("x"),
    "draft.config": taps,
    "target.files.model.safetensors.size": grow,
    "target.files": add,
    "draft.files": lambda pair: (pair / "draft" / "model.safetensors").unlink(),
}


@pytest.mark.parametrize("field", DIFFERENT)
def test_what_differs_is_named(pair: Path, field: str) -> None:
    DIFFERENT[field](pair)
    with pytest.raises(PairError, match=f"{field} differs from pair.json") as caught:
        load(str(pair), quiet=True)
    assert "\n" not in str(caught.value)


def test_taps_are_compared_by_themselves(pair: Path) -> None:
    edit("pair.json", draft=json.loads((pair / "pair.json").read_text())["draft"] | {"taps": [1]})(
        pair
    )
    with pytest.raises(PairError, match=r"draft.taps differs from pair.json: \[0, 2\], expected"):
        pairfile.PairFolder(pair).check()


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "target": {}}']
)
def test_a_malformed_pair_is_refused(pair: Path, content: str) -> None:
    (pair / "pair.json").write_text(content)
    with pytest.raises(DFlashError):
        load(str(pair), quiet=True)


def test_a_name_that_leads_out_of_the_folder_is_not_followed(pair: Path, tmp_path: Path) -> None:
    stated = json.loads((pair / "pair.json").read_text())
    stated["draft"]["files"] = {"../../secret.safetensors": {"size": 1}}
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    (pair / "pair.json").write_text(json.dumps(stated))
    with pytest.raises(PairError, match=r"draft.files differs"):
        pairfile.PairFolder(pair).check()


def test_half_a_pair(pair: Path) -> None:
    shutil.rmtree(pair / "target")
    with pytest.raises((CheckpointError, PairError)):
        load(str(pair), quiet=True)
