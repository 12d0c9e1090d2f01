"""Servers under several clients at once: ours, ours with one place, and `mlx_lm.server`.

`serving.py` runs it. All serve the embedded target, in the type that we compute in, and keep no
prompts: no answer profits from the one before it. Their answers are compared with those of the
library, given alone and without a draft.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import mlx.core as mx
import numpy as np

from dflash_mlx.bench.data.problems import Problem
from dflash_mlx.bench.endpoint import Endpoint, ask
from dflash_mlx.bench.records import Turn
from dflash_mlx.bench.run import Plan
from dflash_mlx.embedded import embedded_target
from dflash_mlx.generation import generate
from dflash_mlx.loading import Pair, compute_dtype
from dflash_mlx.options import Options

from ..ports import free_ports

PROMPTS = Path(__file__).parents[1] / "data" / "prompts.json"
STARTS = 300  # seconds
BEFORE = (0, 3, 10, 30)  # other requests that stand before one: from 20 tokens to 600, about
# With the same BLAS as ours, which on a CPU decides more than anything else.
THEIRS = """
from dflash_mlx.blas import prefer_openblas
prefer_openblas()
from mlx_lm.server import main
main()
"""
CUT = "\ufffd"  # half a character where an answer ends at its limit


@dataclass(frozen=True)
class Load:
    """What came of some requests at once.

    Attributes:
        seconds: from the first request to the end of the last answer.
    """

    turns: list[Turn]
    seconds: float

    @property
    def rate(self) -> float:
        return sum(turn.tokens for turn in self.turns) / self.seconds


def messages(count: int) -> list[str]:
    """Requests of mixed lengths, no two alike."""
    texts = [item["prompt"] for item in json.loads(PROMPTS.read_text())]
    found = []
    for i in range(count):
        others = [texts[(i + k) % len(texts)] for k in range(1, 1 + BEFORE[i % len(BEFORE)])]
        told = "Here are some requests:\n" + "\n".join(others) + "\nAnswer just this one: "
        found.append((told if others else "") + texts[i % len(texts)])
    return found


def compare(
    pair: Pair, counts: Sequence[int], tokens: int, repeats: int, block: int | None = None
) -> list[dict[str, Any]]:
    """Figures of every server, for so many clients at a time; servers take turns."""
    texts = messages(max(counts))
    alone = [_alone(pair, text, tokens) for text in texts]
    del pair
    plan = Plan(tokens)
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        servers = {
            name: stack.enter_context(_running(command, port, model))
            for name, (command, port, model) in _commands(Path(folder), max(counts), block).items()
        }
        for server in servers.values():  # one that is not counted
            _load(server, texts[:1], plan)
        return [_figures(servers, texts[:count], alone[:count], plan, repeats) for count in counts]


def table(counts: Sequence[dict[str, Any]]) -> str:
    """The figures for people."""
    lines = [
        "clients  server               tokens/s (least - most)  first token p50, p95  as alone"
    ]
    for figures in counts:
        for name, one in figures.items():
            if name == "clients":
                continue
            rate, least, most = one["tokens_s"]
            first = "{p50:.2f} s, {p95:.2f} s".format(**one["ttft_s"])
            lines.append(
                f"{figures['clients']:>7}  {name:<20} {f'{rate} ({least} - {most})':<25}"
                f"{first:<22}{one['as_alone']}"
            )
    return "\n".join(lines)


def _figures(
    servers: dict[str, Endpoint],
    texts: Sequence[str],
    alone: Sequence[str],
    plan: Plan,
    repeats: int,
) -> dict[str, Any]:
    loads: dict[str, list[Load]] = {name: [] for name in servers}
    for repeat in range(repeats):
        for name, server in servers.items():
            loads[name].append(_load(server, texts, plan))
        print(f"{len(texts)} clients, pass {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
    return {"clients": len(texts)} | {name: _figure(done, alone) for name, done in loads.items()}


def _figure(loads: Sequence[Load], alone: Sequence[str]) -> dict[str, Any]:
    rates = [load.rate for load in loads]
    first = [turn.ttft_s for load in loads for turn in load.turns]
    same = [
        turn.text.rstrip(CUT) == text.rstrip(CUT)
        for load in loads
        for turn, text in zip(load.turns, alone, strict=True)
    ]
    return {
        "tokens_s": [round(rate, 2) for rate in (np.median(rates), min(rates), max(rates))],
        "ttft_s": {f"p{p}": round(float(np.percentile(first, p)), 3) for p in (50, 95)},
        "as_alone": f"{sum(same)} of {len(same)}",
    }


def _load(server: Endpoint, texts: Sequence[str], plan: Plan) -> Load:
    with ThreadPoolExecutor(len(texts)) as pool:
        began = time.perf_counter()
        problems = [Problem(id=str(i), turns=(text,)) for i, text in enumerate(texts)]
        done = list(pool.map(lambda problem: ask(server, problem, plan, 0)[0], problems))
        return Load(done, time.perf_counter() - began)


def _alone(pair: Pair, text: str, tokens: int) -> str:
    message = [{"role": "user", "content": text}]
    prompt = pair.tokenizer.apply_chat_template(message, add_generation_prompt=True)
    return generate(pair, prompt, Options(tokens, speculate=False))


def _commands(
    folder: Path, clients: int, block: int | None
) -> dict[str, tuple[list[str], int, str]]:
    """Of each server: how it is started, where it listens, what it calls the model."""
    ours = [sys.executable, "-m", "dflash_mlx.cli", "serve", "--quiet", "--cache-memory", "0"]
    ours += ["--queue", str(clients), *(["--block", str(block)] if block else [])]
    target = str(_copy(folder))
    theirs = [sys.executable, "-c", THEIRS, "--model", target, "--log-level", "ERROR"]
    theirs += ["--prompt-cache-size", "0"]
    ports = free_ports(3)
    name = "smollm2-135m"
    return {
        "ours": ([*ours, "--places", str(clients)], ports[0], name),
        "ours, one at a time": ([*ours, "--places", "1"], ports[1], name),
        "mlx_lm.server": (theirs, ports[2], target),
    }


def _copy(folder: Path) -> Path:
    """The embedded target in the type that it is computed in by us, as `mlx_lm.server` takes it."""
    source, target = embedded_target(quiet=True), folder / "target"
    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    for path in source.glob("*.safetensors"):
        tensors = mx.load(str(path))
        assert isinstance(tensors, dict)
        cast = {
            name: tensor.astype(compute_dtype(tensor.dtype)) for name, tensor in tensors.items()
        }
        mx.save_safetensors(str(target / path.name), cast, {"format": "mlx"})
    return target


@contextmanager
def _running(command: list[str], port: int, model: str) -> Iterator[Endpoint]:
    """A server, until the end of the context."""
    server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + STARTS
        while not _listens(port):
            if server.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server of {model} did not start; see its own messages")
            time.sleep(0.2)
        yield Endpoint(f"http://127.0.0.1:{port}/v1", model)
    finally:
        server.terminate()
        server.wait()


def _listens(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
            return True
    except (URLError, OSError):
        return False
