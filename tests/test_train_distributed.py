"""Two processes with a share of the packs each learn what one learns from all of them."""

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from dflash_mlx.train.arrays import read_arrays
from dflash_mlx.train.distributed import Group

from .ports import launched
from .training import Training

ROOT = Path(__file__).parents[1]


def run(folder: Path, processes: int) -> tuple[list[str], Path]:
    folder.mkdir()
    command = [sys.executable, "-m", "tests.train_ranks", str(folder)]
    if processes > 1:
        command = launched(processes, *command)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (folder / "result.txt").is_file(), done.stdout + done.stderr
    return (folder / "result.txt").read_text().split(), folder


class Follower(Group):
    """The second of two processes, whose fellow has the same packs."""

    @property
    def rank(self) -> int:
        return 1


def test_only_one_process_writes(tmp_path: Path) -> None:
    training = Training(tmp_path / "fit", count=3, epochs=1, pack_tokens=80, packs=1, anchors=4)
    training.fit(group=Follower()).run()
    assert not list((tmp_path / "fit").iterdir())


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    (size, *losses), one = run(tmp_path / "one", 1)
    (sizes, *shared), two = run(tmp_path / "two", 2)
    assert (size, sizes) == ("1", "2") and len(losses) == 4
    assert [float(x) for x in shared] == pytest.approx([float(x) for x in losses], rel=1e-4)
    for name in ("gradients", "weights"):
        expected = read_arrays(one / f"{name}.safetensors")
        found = read_arrays(two / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            largest = mx.abs(value).max().item()
            assert mx.abs(found[key] - value).max().item() <= 1e-4 * largest + 1e-7, key
