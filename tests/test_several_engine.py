"""An engine over several processes gives the answers of one."""

import json
import sys
from pathlib import Path
from typing import Any

from dflash_mlx.engine.orders import LONGEST, rest
from dflash_mlx.ranks import Ranks

from .several_engine import CASES, everything
from .test_several import ROOT, side_by_side


def test_two_processes_serve_as_one(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "tests.several_engine", str(out)]
    for code, said, errors in side_by_side(tmp_path, command, [ROOT, ROOT]):
        assert (code, said) == (0, ""), errors
    found, wanted = json.loads(out.read_text()), json.loads(json.dumps(everything(None)))
    assert found.keys() == wanted.keys()
    for family in [one for families in CASES.values() for one in families]:
        own = wanted[family].pop("without")
        (whole,) = wanted[family].pop("sizes")
        sizes, refused = found[family].pop("sizes"), found[family].pop("refused")
        assert len(sizes) == 2
        assert max(sizes) < whole or family == "kimi_k25"  # latents are whole everywhere
        assert [line.partition(" ")[0] for line in refused] == ["a", "several"]
        for name in found[family]:
            ours, theirs = found[family][name], wanted[family][name]
            cut = ours.pop("cut")
            assert own["cut"][: len(cut)] == cut != [], (family, name)
            assert {key: ours[key] for key in ("answers", "others", "later")} == {
                key: own[key] for key in ("answers", "others", "later")
            }, (family, name)
            assert ours["top"] == theirs["top"]
            assert ours["ended"] == theirs["ended"]
        roomy = found[family]["roomy"]
        assert roomy["cached"] == wanted[family]["roomy"]["cached"]
        assert min(roomy["cached"]) > 0 and not roomy["evicted"]
    assert found["llama-sliding"]["narrow"]["evicted"] and found["qwen3_next"]["narrow"]["evicted"]


class Alone(Ranks):
    """Counts what would be exchanged."""

    exchanges = 0

    def agree(self, number: int) -> int:
        self.exchanges += 1
        return number


def test_ranks_that_rest_sleep_ever_longer() -> None:
    """Nobody waits in an exchange, which takes a core."""
    slept: list[float] = []
    ranks: Any = Alone()

    def ready(seconds: float) -> bool:
        slept.append(seconds)
        return sum(slept) > 10

    rest(ranks, ready)
    assert ranks.exchanges == len(slept) < 10 / LONGEST + 10
    assert slept == sorted(slept) and slept[-1] == LONGEST
