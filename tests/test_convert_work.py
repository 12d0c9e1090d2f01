"""A conversion that is cut off anywhere: taken up again, or nothing left."""

import errno
import hashlib
import json
import multiprocessing
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from dflash_mlx import shards
from dflash_mlx.convert.run import Request, prepare
from dflash_mlx.errors import CheckpointError, DFlashError, UsageError
from dflash_mlx.loading import load

from . import convert_cases as cases

BITS = {"bits": 4, "group_size": 32}
SMALL = 30_000  # bytes of a shard


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, Path]:
    target = cases.write_target(tmp_path / "target", "qwen3_moe")
    return target, cases.write_draft(tmp_path / "draft")


def convert(source: tuple[Path, Path], out: Path, **more: Any) -> Path:
    return cases.convert(source[0], out, source[1], target=BITS, limit=SMALL, **more)


def hashes(folder: Path) -> dict[str, str]:
    """Every file by content; a card and pair.json name the sources, which stay the same here."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def work_of(out: Path) -> Path:
    return out.parent / f".{out.name}.convert"


class Cut(Exception):
    """Stands for a process that ends."""


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let writing end in the middle of the n-th file, and count the files written."""

    def arm(after: int, error: BaseException | None = None) -> list[Path]:
        written: list[Path] = []

        def write(path: Path, tensors: Any, wrote: Any) -> shards.Written:
            if len(written) == after:
                path.write_bytes(b"half a file")
                raise error or Cut
            written.append(path)
            return whole(path, tensors, wrote)

        monkeypatch.setattr("dflash_mlx.convert.run.write", write)
        return written

    whole = shards.write
    return arm


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_conversion_is_continued(
    tmp_path: Path, source: tuple[Path, Path], cut: Any, after: int
) -> None:
    wanted = hashes(convert(source, tmp_path / "a" / "out"))
    out = tmp_path / "b" / "out"
    cut(after)
    with pytest.raises(Cut):
        convert(source, out)
    assert not out.exists()
    with pytest.raises(DFlashError):
        load(str(work_of(out) / "out"), quiet=True)
    written = cut(-1)
    assert hashes(convert(source, out)) == wanted
    assert len(written) == len([n for n in wanted if n.endswith("safetensors")]) - after
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_a_finished_shard_that_was_damaged_meanwhile_is_written_again(
    tmp_path: Path, source: tuple[Path, Path], cut: Any
) -> None:
    wanted = hashes(convert(source, tmp_path / "a" / "out"))
    out = tmp_path / "b" / "out"
    done = cut(3)
    with pytest.raises(Cut):
        convert(source, out)
    first = done[0].with_suffix("")  # it was written as NAME.part
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    cut(-1)
    assert hashes(convert(source, out)) == wanted


@pytest.mark.parametrize("change", ["recipe", "source"])
def test_work_on_something_else_is_thrown_away(
    tmp_path: Path, source: tuple[Path, Path], cut: Any, change: str
) -> None:
    out = tmp_path / "b" / "out"
    cut(2)
    with pytest.raises(Cut):
        convert(source, out)
    bits = {"bits": 8, "group_size": 32} if change == "recipe" else BITS
    if change == "source":
        (source[0] / "config.json").touch()
    written = cut(-1)
    cases.convert(source[0], out, source[1], target=bits, limit=SMALL)
    assert len(written) == len(list(out.rglob("*.safetensors")))


def test_a_full_disk_leaves_nothing(tmp_path: Path, source: tuple[Path, Path], cut: Any) -> None:
    out = tmp_path / "b" / "out"
    cut(2, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(UsageError, match="the disk is full; free") as caught:
        convert(source, out)
    assert "\n" not in str(caught.value)
    assert list(out.parent.iterdir()) == []


def test_a_disk_that_is_too_full_is_noticed_first(
    tmp_path: Path, source: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UsageError, match=r"needs 64 MiB, 0 MiB are free"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_there_is_left_alone(tmp_path: Path, source: tuple[Path, Path]) -> None:
    out = convert(source, tmp_path / "out")
    before = hashes(out)
    with pytest.raises(UsageError, match="out exists; name another folder with --out, or add"):
        convert(source, out)
    assert hashes(out) == before


def test_force_replaces_a_model_and_nothing_else(
    tmp_path: Path, source: tuple[Path, Path], cut: Any
) -> None:
    out = convert(source, tmp_path / "out")
    (out / "note").write_text("old")
    cut(1)
    with pytest.raises(Cut):
        convert(source, out, force=True)
    assert (out / "note").is_file()
    cut(-1)
    convert(source, out, force=True)
    assert not (out / "note").exists()
    home = tmp_path / "home"
    (home / "letters").mkdir(parents=True)
    with pytest.raises(UsageError, match="is no folder of a model; --force replaces only those"):
        convert(source, home, force=True)
    (tmp_path / "link").symlink_to(home)
    with pytest.raises(UsageError, match="is no folder of a model"):
        convert(source, tmp_path / "link", force=True)


def test_a_full_disk_gives_back_what_was_being_replaced(
    tmp_path: Path, source: tuple[Path, Path], cut: Any
) -> None:
    out = convert(source, tmp_path / "out")
    before = hashes(out)
    cut(1, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(UsageError, match="the disk is full"):
        convert(source, out, force=True)
    assert hashes(out) == before


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, source: tuple[Path, Path]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written: "):
        convert(source, tmp_path / "file" / "out")


def test_a_source_that_is_cut_while_it_is_read(tmp_path: Path, source: tuple[Path, Path]) -> None:
    request = Request(str(source[0]), tmp_path / "out", str(source[1]))
    job = prepare(request)
    (source[0] / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="the source could not be read"):
        job.write(lambda *_: None)
    assert not (tmp_path / "out").exists()


def test_progress_ends_at_the_total(tmp_path: Path, source: tuple[Path, Path], cut: Any) -> None:
    cut(2)
    with pytest.raises(Cut):
        convert(source, tmp_path / "out")
    cut(-1)
    seen: list[tuple[str, int, int]] = []
    request = Request(str(source[0]), tmp_path / "out", str(source[1]), limit=SMALL)
    job = prepare(request)
    job.write(lambda *step: seen.append(step))
    assert {total for _, _, total in seen} == {job.size}
    assert seen[-1][1] == job.size
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def _convert_in_a_process(ready: Any, source: tuple[Path, Path], out: Path) -> None:
    ready.set()
    convert(source, out)


@pytest.mark.slow
def test_killed_twenty_times_at_random(tmp_path: Path, source: tuple[Path, Path]) -> None:
    wanted = hashes(convert(source, tmp_path / "a" / "out"))
    out = tmp_path / "b" / "out"
    context = multiprocessing.get_context("forkserver")
    # What takes seconds to import is imported once; nothing is computed there.
    context.set_forkserver_preload([__name__, "mlx_lm.utils", "dflash_mlx.convert.run"])
    chance = random.Random(4)
    kills = halfway = 0
    longest = 0.5  # seconds until a kill; follows what a conversion takes here and now
    while kills < 20:
        ready = context.Event()
        process = context.Process(target=_convert_in_a_process, args=(ready, source, out))
        process.start()
        assert ready.wait(60)
        began = time.perf_counter()
        process.join(chance.uniform(0, longest))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
            longest = time.perf_counter() - began
        if out.exists():  # finished, or killed behind the last rename
            assert hashes(out) == wanted
            shutil.rmtree(out)
        begun = bool(list(work_of(out).rglob("*.safetensors")))
        halfway += begun
        longest *= 1 if begun else 1.1
        for folder in (work_of(out) / "out", *work_of(out).glob("out/*")):
            _is_whole_or_refused(folder, wanted)
    assert halfway > 3  # kills that left shards to go on from
    convert(source, out)
    assert hashes(out) == wanted
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def _is_whole_or_refused(folder: Path, wanted: dict[str, str]) -> None:
    if not folder.is_dir() or not (folder / "config.json").is_file():
        assert not (folder / "pair.json").is_file() or hashes(folder) == wanted
        return
    prefix = f"{folder.name}/"
    part = {n.removeprefix(prefix): h for n, h in wanted.items() if n.startswith(prefix)}
    assert hashes(folder) == part
    json.loads((folder / "config.json").read_text())
