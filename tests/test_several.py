"""Several processes that share a target answer as one does."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from typer.testing import CliRunner

from dflash_mlx import sharding
from dflash_mlx.checkpoint import read_config
from dflash_mlx.cli import app
from dflash_mlx.embedded import embedded_target
from dflash_mlx.errors import UnsupportedError, UsageError
from dflash_mlx.footprint import target_shape
from dflash_mlx.guide import Guide
from dflash_mlx.loading import load
from dflash_mlx.options import Options
from dflash_mlx.ranks import Ranks, join
from dflash_mlx.sampling import Sampling
from dflash_mlx.targets import target_for
from dflash_mlx.targets.rotation import Rotation

from .convert_cases import DRAFT, TALKING, write_draft, write_talking_target
from .ports import free_ports, launched
from .reduced import CONFIGS, HIDDEN, build
from .several_ranks import everything

ROOT = Path(__file__).parents[1]
COMMAND = str(Path(sys.executable).with_name("dflash-mlx"))
Done = tuple[int, str, str]


class FakeGroup:
    """Stands for processes that nothing is exchanged with."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self._size, self._rank = size, rank

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


def ranks(size: int = 2, shard: Any = "tensor") -> Ranks:
    return Ranks(FakeGroup(size), shard)  # type: ignore[arg-type]


def text_of(family: str) -> dict[str, Any]:
    config = CONFIGS[family]
    return config.get("text_config", config)


def test_layers_are_split_evenly() -> None:
    assert sharding.split(7, 3) == (range(3), range(3, 5), range(5, 7))
    assert sharding.split(4, 1) == (range(4),)


@pytest.mark.parametrize(
    ("family", "size", "field"),
    [
        ("llama", 3, "num_attention_heads is 4"),
        ("llama", 4, "num_key_value_heads is 2"),
        ("qwen3_5", 4, "linear_num_key_heads is 2"),
        ("deepseek_v3", 8, "num_attention_heads is 4"),
    ],
)
def test_what_does_not_divide_is_named(family: str, size: int, field: str) -> None:
    with pytest.raises(UnsupportedError, match=f"X cannot .*{field}.*--shard pipeline"):
        sharding.check(text_of(family), "X", ranks(size))


def test_the_embedded_pair_is_refused_by_name() -> None:
    config = read_config(embedded_target(quiet=True))
    line = "smollm2-135m cannot be sharded over 2 processes: num_attention_heads is 9"
    with pytest.raises(UnsupportedError, match=f"{line}.*--shard pipeline"):
        sharding.check(config, "smollm2-135m", ranks())
    sharding.check(config, "smollm2-135m", ranks(2, "pipeline"))


def test_few_layers_and_shared_ones_make_no_stages() -> None:
    with pytest.raises(UnsupportedError, match="4 layers for 5 processes"):
        sharding.check(text_of("llama"), "X", ranks(5, "pipeline"))
    with pytest.raises(UnsupportedError, match="share keys and values"):
        sharding.check(text_of("gemma4-shared"), "X", ranks(2, "pipeline"))


def test_a_family_that_mlx_lm_does_not_shard() -> None:
    with pytest.raises(UnsupportedError, match=r"cannot shard X \(gemma4\).*--shard pipeline"):
        sharding.cut(build("gemma4"), "X", ranks())


def test_a_stage_without_recurrent_layers() -> None:
    """The last of four holds the one layer that attends."""
    last = Ranks(FakeGroup(4, 3), "pipeline")  # type: ignore[arg-type]
    model = build("qwen3_next")
    sharding.cut(model, "X", last)
    target = target_for(model, (), last)
    caches = [target.new_cache(), target.new_cache()]
    ids, hidden = mx.zeros((1, 4), mx.int32), mx.ones((1, 4, HIDDEN))
    for cache in caches:
        state = cache.begin(0, 4, fixed=False)
        now = target.open(ids, 0, state)
        now.rotation = Rotation(0)
        seen = target.run(0, hidden, now)
        cache.update(target.close(state, now))
        cache.commit(2)
    states = [cache.begin(2, 4, fixed=False) for cache in caches]
    several = target.open(mx.zeros((2, 4), mx.int32), [2, 2], states)
    several.rotation = Rotation([2, 2])
    both = target.run(0, mx.concatenate([hidden, hidden]), several)
    assert both.shape == (2, *seen.shape[1:])
    assert len(target.close(states, several)) == 2


def test_options_that_need_other_processes_or_none() -> None:
    assert join().size == 1 and join("off").size == 1
    with pytest.raises(UsageError, match="this is the only one"):
        join("tensor")
    with pytest.raises(UsageError, match="--kernels on needs a single process"):
        load(kernels="on", ranks=ranks())


def test_options_travel_as_json() -> None:
    sampling = Sampling(temperature=0.5, logit_bias=((3, 1.5), (4, float("-inf"))))
    guide = Guide.regex("[a-z]")
    options = Options(7, sampling, block="auto", stop=("a", "b"), seed=3, guide=guide)
    assert Options.from_dict(json.loads(json.dumps(options.as_dict()))) == options


def started(
    folder: Path, command: Sequence[str], folders: Sequence[Path]
) -> list[subprocess.Popen[str]]:
    """Two processes that run, as `side_by_side` has them."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    shared = {"MLX_HOSTFILE": str(hosts), "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            command,
            cwd=where,
            env=os.environ | shared | {"MLX_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, where in enumerate(folders)
    ]


def side_by_side(folder: Path, command: Sequence[str], folders: Sequence[Path]) -> list[Done]:
    """Two processes, each in its folder, connected as `mlx.launch` does but without one more."""
    running = started(folder, command, folders)
    return [(each.wait(600), *each.communicate(timeout=600)) for each in running]


def test_two_processes_answer_as_one(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "tests.several_ranks", str(out)]
    for code, said, errors in side_by_side(tmp_path, command, [ROOT, ROOT]):
        assert (code, said) == (0, ""), errors
    found = json.loads(out.read_text())
    (failure,) = found.pop("failing")
    assert failure == f"process 1 on {socket.gethostname()}: no such file"
    wanted = json.loads(json.dumps(everything()))
    assert found.keys() == wanted.keys()
    for name, families in wanted.items():
        for family, expected in families.items():
            assert found[name][family] == expected, (name, family)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a pair on disk."""
    folder = tmp_path_factory.mktemp("pair")
    target = write_talking_target(folder / "target")
    draft = write_draft(folder / "draft", DRAFT | {"vocab_size": TALKING})
    return ["-m", str(target), "-d", str(draft)]


def launch(*arguments: str, lines: str = "") -> Done:
    """A command by `mlx.launch -n 2`, whose stdin stays open as a terminal's does."""
    command = launched(2, COMMAND, *arguments)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as running:
        assert running.stdin and running.stdout and running.stderr
        running.stdin.write(lines)
        running.stdin.flush()
        code = running.wait(timeout=600)
        return code, running.stdout.read(), running.stderr.read()


def test_a_conversation_by_the_launcher(pair: list[str]) -> None:
    arguments = ["chat", *pair, "--shard", "tensor", "-n", "5"]
    _, said, errors = launch(*arguments, lines="one\n/undo\n/nonsense\none\n/quit\n")
    wanted = CliRunner().invoke(app, ["chat", *pair, "-n", "5", "-p", "one"])
    assert wanted.exit_code == 0 and said == 2 * wanted.stdout, errors
    assert errors.count("no command /nonsense") == 1 and "tensor over 2 processes" in errors


def test_a_rank_that_fails_ends_all(pair: list[str], tmp_path: Path) -> None:
    """The second process does not find the target."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = Path(pair[1])
    command = [COMMAND, "chat", "-m", f"./{target.name}", *pair[2:], "-p", "one"]
    (one, said, errors), (two, *nothing) = side_by_side(
        tmp_path, command, [target.parent, elsewhere]
    )
    assert (one, two, said, nothing) == (1, 1, "", ["", ""])
    (line,) = errors.splitlines()
    assert line.startswith(f"error: process 1 on {socket.gethostname()}: no model './target'")


def test_what_a_rank_keeps() -> None:
    """Rows of its heads or of its layers; latents are whole."""
    plain = target_shape({**text_of("llama"), "num_hidden_layers": 5})
    assert plain.part(2, staged=False).rows[0].width == plain.rows[0].width // 2
    assert plain.part(2, staged=True).rows[0].layers == 3
    latent = target_shape(text_of("glm_moe_dsa"))
    assert latent.part(2, staged=False) == latent
    hybrid = target_shape(text_of("qwen3_5"))
    half = hybrid.part(2, staged=False).recurrent
    assert half and hybrid.recurrent and 2 * half.state == hybrid.recurrent.state
    assert hybrid.part(1, staged=False) == hybrid
