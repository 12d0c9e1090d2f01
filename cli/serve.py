"""`dflash-mlx serve`: parse, load, serve until a signal comes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dflash_mlx.errors import UsageError

from .options import ModelOptions, SamplingOptions, SpeculationOptions, option, width
from .ready import make_ready
from .render import Screen
from .serve_log import Log

if TYPE_CHECKING:
    from dflash_mlx.engine import EngineOptions
    from dflash_mlx.loading import Pair
    from dflash_mlx.options import Options
    from dflash_mlx.serve.served import Access, Limits

Client = Literal["openai", "claude-code", "codex", "aider", "continue", "cline", "open-webui"]
LOOPBACK = "127.0.0.1"
MIB = 1 << 20

EXAMPLES = """Examples:
  dflash-mlx serve
  dflash-mlx serve -m Qwen3-4B --bits 4 --port 9000
  dflash-mlx serve -m Qwen3.5-9B --host 0.0.0.0 --api-key-file key.txt
  dflash-mlx serve -m Qwen3-8B --print-env codex"""


def _server(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Server", *names, help=help, metavar=metavar)


def _work(*names: str, help: str, metavar: str | None = None) -> Any:
    return option("Work", *names, help=help, metavar=metavar)


@dataclass(frozen=True)
class ServerOptions:
    """Where the server is, and who may ask."""

    host: Annotated[
        str, _server("--host", help="Address to listen at; others need a key", metavar="NAME")
    ] = LOOPBACK
    port: Annotated[int, _server("--port", help="Port, 0 for any", metavar="N")] = 8080
    api_key: Annotated[
        list[str] | None,
        _server("--api-key", help="Key that clients must send, repeatable", metavar="KEY"),
    ] = None
    api_key_file: Annotated[
        Path | None, _server("--api-key-file", help="File with a key a line", metavar="FILE")
    ] = None
    alias: Annotated[
        list[str] | None,
        _server("--alias", help="Another name for the model, repeatable", metavar="NAME"),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        _server("--allow-host", help="Name it may be asked by, repeatable", metavar="NAME"),
    ] = None
    allow_origin: Annotated[
        list[str] | None,
        _server("--allow-origin", help="Web page that may ask, repeatable", metavar="URL"),
    ] = None
    max_body: Annotated[int, _server("--max-body", help="Most MiB of a request", metavar="MIB")] = (
        16
    )
    print_env: Annotated[
        Client | None,
        _server("--print-env", help="Print how to point a client at it, and leave"),
    ] = None
    json: Annotated[bool, _server("--json", help="Log as JSON, a line a request")] = False
    quiet: Annotated[bool, _server("--quiet", "-q", help="Log no requests")] = False

    def keys(self) -> tuple[str, ...]:
        """All keys.

        Raises:
            UsageError: the file cannot be read, or a key is empty or not ASCII.
        """
        keys = list(self.api_key or ())
        if self.api_key_file is not None:
            keys += _lines(self.api_key_file)
            if not keys:
                raise UsageError(f"{self.api_key_file} holds no key; write one a line")
        for key in keys:
            if not key.strip() or not key.isascii() or not key.isprintable():
                raise UsageError("an API key is empty or has characters that no header can carry")
        return tuple(keys)

    def access(self, loopback: bool) -> Access:
        """The library's form of who may ask.

        Raises:
            UsageError: others could ask without a key.
        """
        from dflash_mlx.serve.served import Access
        from dflash_mlx.serve.server import LOOPBACK

        keys = self.keys()
        if not loopback and not keys:
            raise UsageError(
                f"--host {self.host} lets other machines ask; give --api-key or --api-key-file"
            )
        hosts = tuple(name.lower() for name in self.allow_host or ())
        # The key is what protects a server that others reach: they know it by any name.
        names = (*LOOPBACK, self.host.lower(), *hosts) if loopback or hosts else None
        return Access(keys, names, tuple(self.allow_origin or ()))

    def limits(self) -> Limits:
        """The library's form of what a request may be."""
        from dflash_mlx.serve.served import Limits

        if self.max_body < 1:
            raise UsageError(f"--max-body is {self.max_body}, expected 1 or more")
        return Limits(body=self.max_body * MIB)


@dataclass(frozen=True)
class WorkOptions:
    """How much is done at a time."""

    places: Annotated[int, _work("--places", help="Requests answered at a time", metavar="N")] = 4
    queue: Annotated[
        int, _work("--queue", help="Requests that may wait beyond these", metavar="N")
    ] = 32
    memory: Annotated[
        int | None,
        _work("--memory", help="GiB for their caches; by default what is free", metavar="GIB"),
    ] = None
    max_context: Annotated[
        int | None,
        _work("--max-context", help="Most tokens of prompt and answer", metavar="N"),
    ] = None
    max_tokens: Annotated[
        int,
        _work("--max-tokens", "-n", help="Tokens of an answer that names no limit", metavar="N"),
    ] = 8192
    think: Annotated[
        bool | None,
        _work("--think/--no-think", help="Whether to think where a request does not say"),
    ] = None

    def engine(self) -> EngineOptions:
        """The library's form."""
        from dflash_mlx.engine import EngineOptions

        memory = None if self.memory is None else self.memory * 1024 * MIB
        return EngineOptions(self.places, self.queue, memory)

    def limit(self, pair: Pair) -> None:
        """Make the context smaller, where asked to.

        Raises:
            UsageError: it is not that large.
        """
        if self.max_context is None:
            return
        if not 2 <= self.max_context <= pair.max_context:
            raise UsageError(
                f"--max-context is {self.max_context}, expected 2 to {pair.max_context}"
            )
        pair.max_context = self.max_context


def serve(
    model: ModelOptions,
    at: ServerOptions,
    work: WorkOptions,
    sampling: SamplingOptions,
    speculation: SpeculationOptions,
) -> None:
    """Serve a model to apps and agents, with OpenAI's and Anthropic's APIs.

    Sampling options are for requests that do not say. It listens on this machine alone unless
    told otherwise.
    """
    _need("uvicorn", "starlette", "pydantic", "prometheus_client")
    if at.print_env is not None:
        _print_env(at, model.model)
        return
    from dflash_mlx.engine import Engine
    from dflash_mlx.serve.served import Served, names_of
    from dflash_mlx.serve.server import address, bound, is_loopback, run

    with bound(at.host, at.port) as opened:
        access, limits = at.access(is_loopback(opened)), at.limits()
        defaults = _defaults(work, sampling, speculation)
        log = Log(at.json, at.quiet)
        pair = _load(model, work, defaults, log.screen)
        names = names_of(pair, model.model, tuple(at.alias or ()))
        with Engine(pair, work.engine()) as engine:
            log.start(address(opened), pair, names)
            run(
                Served(pair, engine, names, defaults, work.think, limits, access, log.request),
                opened,
            )
        log.end()


def _load(model: ModelOptions, work: WorkOptions, defaults: Options, screen: Screen) -> Pair:
    from .chat import wire_memory

    if screen.err.is_terminal:
        screen.note(f"loading {model.model} ...")
    pair = model.load(screen.quiet)
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


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _need(*names: str) -> None:
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"serve needs {', '.join(missing)}; install them with: pip install 'dflash-mlx[serve]'"
        )
