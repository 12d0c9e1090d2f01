"""`dflash-mlx serve`: parse, load, serve until a signal comes."""

from __future__ import annotations

from contextlib import closing
from importlib.util import find_spec
from socket import socket
from typing import TYPE_CHECKING

import typer

from dflash_mlx.errors import DFlashError, UsageError

from .options import ModelOptions, SamplingOptions, SpeculationOptions, width
from .ready import make_ready
from .render import Screen
from .serve_log import Log
from .serve_options import LOOPBACK, ServerOptions, WorkOptions
from .several import ShardOptions, follow, wire_memory

if TYPE_CHECKING:
    from dflash_mlx.loading import Pair
    from dflash_mlx.options import Options
    from dflash_mlx.ranks import Ranks
    from dflash_mlx.serve.served import Access, Limits

    Opened = tuple[socket, Access, Limits]

EXAMPLES = """Examples:
  dflash-mlx serve
  dflash-mlx serve -m Qwen3-4B --bits 4 --port 9000
  dflash-mlx serve -m Qwen3.5-9B --host 0.0.0.0 --api-key-file key.txt
  dflash-mlx serve -m Qwen3-8B --print-env codex"""


def serve(
    model: ModelOptions,
    at: ServerOptions,
    work: WorkOptions,
    sampling: SamplingOptions,
    speculation: SpeculationOptions,
    several: ShardOptions,
) -> None:
    """Serve a model to apps and agents, with OpenAI's and Anthropic's APIs.

    Sampling options are for requests that do not say.
    """
    if at.print_env is not None:
        _print_env(at, model.model)
        return
    ranks = several.join(waits=False)
    if not ranks.leads:
        follow(ranks, lambda: model.load(True, ranks))
        return
    defaults = _defaults(work, sampling, speculation)
    opened, access, limits = ranks.together(lambda: _open(at, work, ranks))
    log = Log(at.json, at.quiet)
    with opened:
        pair = _load(model, work, defaults, log.screen, ranks)
        with ranks.lead():
            _run(pair, model.model, at, work, defaults, (opened, access, limits), log)
        log.end()


def _open(at: ServerOptions, work: WorkOptions, ranks: Ranks) -> Opened:
    """The socket, who may ask, and what; everything that can be refused without a model."""
    _need("uvicorn", "starlette", "pydantic", "prometheus_client")
    from dflash_mlx.serve.server import bound, is_loopback

    work.check(ranks)
    opened = bound(at.host, at.port)
    try:
        return opened, at.access(is_loopback(opened)), at.limits()
    except DFlashError:
        opened.close()
        raise


def _run(
    pair: Pair,
    model: str,
    at: ServerOptions,
    work: WorkOptions,
    defaults: Options,
    where: Opened,
    log: Log,
) -> None:
    from dflash_mlx.engine import Engine
    from dflash_mlx.prefix.cache import PrefixCache
    from dflash_mlx.serve.served import Served, names_of
    from dflash_mlx.serve.server import address, run

    opened, access, limits = where
    names = names_of(pair, model, tuple(at.alias or ()))
    engine_options, prefix_options = work.budgets(pair)
    with closing(PrefixCache(pair, prefix_options)) as prefixes:
        kept = prefixes if prefix_options.memory else None
        with Engine(pair, engine_options, kept) as engine:
            served = Served(
                pair, engine, names, defaults, work.think, limits, access, log.request, kept
            )
            log.start(address(opened), pair, names)
            run(served, opened)


def _load(
    model: ModelOptions, work: WorkOptions, defaults: Options, screen: Screen, ranks: Ranks
) -> Pair:
    if screen.err.is_terminal:
        screen.note(f"loading {model.model} ...")
    pair = model.load(screen.quiet, ranks)
    wire_memory()
    work.limit(pair)
    make_ready(pair, defaults, screen)
    return pair


def _defaults(
    work: WorkOptions, sampling: SamplingOptions, speculation: SpeculationOptions
) -> Options:
    from dflash_mlx.options import Options

    return Options(
        max_tokens=work.max_tokens,
        sampling=sampling.sampling(),
        block=width(speculation.block),
        lookup=speculation.lookup,
        seed=sampling.seed,
        compiled=speculation.compile,
    )


def _print_env(at: ServerOptions, model: str) -> None:
    from dflash_mlx.pairs import find
    from dflash_mlx.serve.clients import CLIENTS, Address

    assert at.print_env is not None
    known = find(model)
    name = (at.alias or [known.name if known else model.rstrip("/").rpartition("/")[2]])[0]
    # What listens everywhere is asked at this machine's own address.
    host = LOOPBACK if at.host in ("0.0.0.0", "::") else at.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{at.port}"
    key = next(iter(at.keys()), "none")
    typer.echo(CLIENTS[at.print_env](Address(url, name, key)), nl=False)


def _need(*names: str) -> None:
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UsageError(f"serve needs {', '.join(missing)}: pip install '.[serve]'")
