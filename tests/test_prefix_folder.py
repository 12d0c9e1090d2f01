"""Prefixes on disk: they survive, they are checked, and they stay within their budget."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from dflash_mlx import shards
from dflash_mlx.errors import UsageError
from dflash_mlx.loading import Pair
from dflash_mlx.prefix import files
from dflash_mlx.prefix import folder as module
from dflash_mlx.prefix.cache import PrefixCache, PrefixOptions
from dflash_mlx.prefix.fingerprint import fingerprint
from dflash_mlx.prefix.snapshot import Layout

from .families import make_pair, prompt_of
from .prefixes import alone, ask, growing, pair_of

PROMPT = prompt_of(60)


def opened(pair: Pair, folder: Path, disk: int = 1 << 30, memory: int = 1 << 30) -> PrefixCache:
    return PrefixCache(pair, PrefixOptions(memory=memory, folder=folder, disk=disk))


def filled(pair: Pair, folder: Path, *prompts: list[int]) -> None:
    """Ask and leave."""
    cache = opened(pair, folder)
    for prompt in prompts or [PROMPT]:
        ask(cache, prompt)
    cache.close()


def kept(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "qwen3_5", "kimi_k25"])
def test_a_conversation_goes_on_after_restarts(family: str, tmp_path: Path) -> None:
    prompt: list[int] = []
    cache = opened(pair_of(family), tmp_path)
    for turn, question in enumerate(growing(20)):
        if turn in (5, 10, 15):
            cache.close()
            cache = opened(pair_of(family), tmp_path)
        prompt = prompt + question
        answer = ask(cache, prompt)
        assert answer.computed == len(question) + (turn > 0)
        if turn == 15:
            assert answer.ids == alone(cache.pair, prompt)
        prompt = prompt + answer.ids
    cache.close()


def test_what_leaves_memory_is_read_again(tmp_path: Path) -> None:
    pair = pair_of("qwen3_5")
    cache = opened(pair, tmp_path)
    ask(cache, PROMPT)
    small = cache.nbytes * 3 // 2
    cache.close()
    cache = opened(pair, tmp_path, memory=small)
    for seed in (1, 2):
        ask(cache, prompt_of(60, seed=seed))
        cache.flush()
    assert cache.statistics().evicted and cache.nbytes <= small
    again = ask(cache, PROMPT)
    assert again.computed <= 16 and again.ids == alone(pair, PROMPT)
    assert cache.nbytes <= small
    cache.close()


def damage(path: Path) -> None:
    """Change one bit of the data."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def restate(path: Path, **changes: str) -> None:
    """Write a file anew that says something else of itself."""
    said = {str(k): str(v) for k, v in files.read_metadata(path).items()} | changes
    tensors = shards.lazy(dict(mx.load(str(path))))
    scratch = path.with_suffix(".new")
    written = shards.write(scratch, tensors, lambda _: None, said)
    path.unlink()
    scratch.rename(path.with_name(f"{path.name.split('.')[0]}.{written.sha256[:32]}.safetensors"))


def foreign(path: Path) -> None:
    restate(path, pair="0" * 64)


def newer(path: Path) -> None:
    restate(path, version="2")


def other_ids(path: Path) -> None:
    said = files.read_metadata(path)
    restate(path, ids=json.dumps([1, *json.loads(str(said["ids"]))[1:]]))


def no_ids(path: Path) -> None:
    restate(path, ids="[1, null]")


def other_shapes(path: Path) -> None:
    tensors = {name: array[..., :-1] for name, array in mx.load(str(path)).items()}
    mx.save_safetensors(
        str(path), tensors, {str(k): str(v) for k, v in files.read_metadata(path).items()}
    )
    checksum = shards.digest(path).sha256[:32]
    path.rename(path.with_name(f"{path.name.split('.')[0]}.{checksum}.safetensors"))


def renamed(path: Path) -> None:
    path.rename(path.with_name("notes.safetensors"))


DAMAGE = {
    damage: "its checksum is wrong",
    truncate: "bytes, the file has",
    empty: "not a safetensors file",
    foreign: "another pair",
    newer: "version '2', expected 1",
    other_ids: "not hold what its name says",
    no_ids: "its ids are no ids",
    other_shapes: "its arrays are not those of this pair",
    renamed: "no prefix file",
}


@pytest.mark.parametrize("harm", DAMAGE, ids=lambda harm: harm.__name__)
def test_a_file_that_is_no_good_is_discarded(
    harm: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = pair_of("qwen3")
    filled(pair, tmp_path)
    (last,) = [p for p in kept(tmp_path) if files.read_metadata(p)["start"] == "48"]
    harm(last)
    with caplog.at_level(logging.WARNING, "dflash_mlx"):
        cache = opened(pair, tmp_path)
        answer = ask(cache, PROMPT)
    assert answer.ids == alone(pair, PROMPT) and answer.computed == 12
    (line,) = [record.getMessage() for record in caplog.records]
    assert DAMAGE[harm] in line and "\n" not in line
    assert cache.statistics().discarded == 1
    cache.close()
    # And it was written anew.
    cache = opened(pair, tmp_path)
    assert ask(cache, PROMPT).computed == 1
    cache.close()


def test_what_leaves_a_discarded_file_goes_too(tmp_path: Path) -> None:
    filled(pair_of("qwen3"), tmp_path)
    (first,) = [p for p in kept(tmp_path) if files.read_metadata(p)["start"] == "0"]
    damage(first)
    cache = opened(pair_of("qwen3"), tmp_path)
    session = cache.take(PROMPT)
    assert session.ids == [] and kept(tmp_path) == []
    cache.close()


def test_another_pair_gets_no_hit_and_destroys_nothing(tmp_path: Path) -> None:
    one, other = pair_of("qwen3"), make_pair("qwen3", None)
    filled(one, tmp_path)
    cache = opened(other, tmp_path)
    assert ask(cache, PROMPT).computed == 60
    cache.close()
    cache = opened(one, tmp_path)
    assert ask(cache, PROMPT).computed == 1
    cache.close()


def name_of(pair: Pair) -> str:
    return fingerprint(pair, Layout.of(pair))


def test_fingerprints() -> None:
    """Weights, settings and drafts tell pairs apart; loading one twice does not."""
    one = name_of(pair_of("qwen3"))
    assert one == name_of(pair_of("qwen3"))
    others = [pair_of("llama"), make_pair("qwen3", None), pair_of("qwen3", window=8)]
    changed = pair_of("qwen3")
    assert changed.draft is not None
    weight = changed.draft.fc.weight
    changed.draft.fc.weight = mx.concatenate([weight[1:2], weight[:1], weight[2:]])
    eps = pair_of("qwen3")
    assert eps.draft is not None
    eps.draft.norm.eps = 1e-3
    assert len({one, *map(name_of, [*others, changed, eps])}) == 6


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    code = "from tests.test_prefix_folder import *; print(name_of(pair_of('qwen3_5')))"
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert run.stdout.strip() == name_of(pair_of("qwen3_5"))


def test_the_budget_holds_and_counts_all_pairs(tmp_path: Path) -> None:
    one, other = pair_of("qwen3"), pair_of("llama")
    filled(one, tmp_path)
    size = sum(p.stat().st_size for p in kept(tmp_path))
    budget = size * 5 // 2 + module.OVERHEAD
    cache = opened(other, tmp_path, budget)
    for seed in range(1, 6):
        ask(cache, prompt_of(60, seed=seed))
        cache.flush()
        assert sum(p.stat().st_size for p in kept(tmp_path)) == cache.statistics().disk <= budget
    cache.close()
    cache = opened(other, tmp_path, budget)
    assert ask(cache, prompt_of(60, seed=5)).computed == 1
    assert ask(cache, prompt_of(60, seed=1)).computed == 60
    cache.close()
    cache = opened(one, tmp_path, budget)
    assert ask(cache, PROMPT).computed == 60
    cache.close()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    others = [tmp_path / "model" / "model.safetensors", tmp_path / "notes.safetensors"]
    for path in others:
        path.write_bytes(b"x" * 1000)
    cache = opened(pair_of("qwen3"), tmp_path, disk=10)
    ask(cache, PROMPT)
    cache.close()
    assert kept(tmp_path) == sorted(others)


def test_only_the_user_may_read_it(tmp_path: Path) -> None:
    filled(pair_of("qwen3"), tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in kept(tmp_path)} == {0o600}
    assert {p.parent.stat().st_mode & 0o777 for p in kept(tmp_path)} == {0o700}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    cache = opened(pair_of("qwen3"), tmp_path)
    with pytest.raises(UsageError, match="used by another process"):
        opened(pair_of("qwen3"), tmp_path)
    cache.close()
    opened(pair_of("qwen3"), tmp_path).close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be used"):
        opened(pair_of("qwen3"), tmp_path / "file")


def test_a_full_disk_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    pair = pair_of("qwen3")
    cache = opened(pair, tmp_path)
    monkeypatch.setattr(shards, "write", full)
    ask(cache, PROMPT)
    cache.flush()
    assert "No space left" in caplog.text
    assert kept(tmp_path) == []
    assert ask(cache, PROMPT).computed == 1
    cache.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from dflash_mlx import shards
from tests.test_prefix_folder import PROMPT, ask, opened, pair_of

def write(path, *rest):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

cache = opened(pair_of("qwen3"), Path(sys.argv[1]))
ask(cache, PROMPT[:40])
cache.flush()
shards.write = write
ask(cache, PROMPT)
cache.flush()
"""


def test_killed_while_writing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, check=False)
    assert run.returncode == -signal.SIGKILL
    assert [p for p in kept(tmp_path) if p.name.endswith(".unfinished")]
    cache = opened(pair_of("qwen3"), tmp_path)
    assert not [p for p in kept(tmp_path) if p.name.endswith(".unfinished")]
    assert ask(cache, PROMPT).computed == 60 - 40
    assert caplog.records == []
    cache.close()
