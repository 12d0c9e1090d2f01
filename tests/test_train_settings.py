"""One file records everything, and says so where it is wrong."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dflash_mlx.errors import UsageError
from dflash_mlx.train.settings import (
    FILE,
    DataSettings,
    DraftSettings,
    FitSettings,
    Settings,
    TargetSettings,
    read_settings,
)
from dflash_mlx.train.tables import parse

SETTINGS = Settings(
    TargetSettings('a "model"', bits=4, think=True),
    DataSettings("prompts.jsonl", temperature=0.7, heldout=0.1),
    DraftSettings(taps=(1, 5), mask_token=16, dflash2=True),
    FitSettings(epochs=2, betas=(0.9, 0.99)),
)


def test_settings_come_back_from_their_file(tmp_path: Path) -> None:
    SETTINGS.write(tmp_path)
    assert read_settings(tmp_path / FILE) == SETTINGS
    assert [p.name for p in tmp_path.iterdir()] == [FILE]
    # Every setting stands there, but for those that are unset.
    text = (tmp_path / FILE).read_text()
    for section in asdict(SETTINGS).values():
        assert all(f"\n{name} = " in text for name, v in section.items() if v is not None)


def test_what_is_not_given_has_its_default(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('[target]\nmodel = "m"\n[data]\nprompts = "p"\nheldout = 0\n')
    expected = Settings(TargetSettings("m"), DataSettings("p", heldout=0.0))
    assert read_settings(tmp_path / FILE) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "no TOML"),
        ('[target]\nmodel = "m"', "data is missing"),
        ("[fit]\nlearning_rat = 1.0", "unknown setting 'learning_rat'"),
        ("[fit]\nepochs = 1.5", "epochs is 1.5, expected a whole number"),
        ("[fit]\nepochs = true", "epochs is True, expected a whole number"),
        ("[fit]\nepochs = 0", "epochs is 0, expected 1 or more"),
        ("[fit]\nbetas = [0.9]", "betas"),
        ('[fit]\nloss = "kl"', "expected one of exponential, dpace"),
        ("[draft]\nblock_size = 65", "expected 2 to 64"),
        ('[draft]\nstart = "d"\nlayers = 2', "d has a shape of its own"),
        ("[draft]\nconvolutions = false", "are DFlash 2's; set dflash2, too"),
        ("[draft]\nselector_rank = 32", "are DFlash 2's; set dflash2, too"),
        ("[draft]\ndflash2 = true\nselector_rank = 0", "selector_rank is 0, expected 1 or more"),
        ("[evaluation]\ncount = 0", "count is 0, expected 1 or more"),
        ('[draft]\ntaps = "all"', "expected a list of numbers"),
        ("fit = 3", "expected a table"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        read_settings(tmp_path / FILE)


def test_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_settings(tmp_path / FILE)


def test_a_new_draft_is_trained_whole() -> None:
    with pytest.raises(UsageError, match="name one with `start`"):
        replace(SETTINGS, fit=FitSettings(train="lora"))
    replace(SETTINGS, fit=FitSettings(train="lora"), draft=DraftSettings(start="z-lab/d"))
    assert parse(FitSettings, {"epochs": 3}, "").epochs == 3
