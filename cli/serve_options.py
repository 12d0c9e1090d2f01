"""Options of `dflash-mlx serve` that no other command has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dflash_mlx.errors import UsageError

from .options import option

if TYPE_CHECKING:
    from dflash_mlx.engine import EngineOptions
    from dflash_mlx.loading import Pair
    from dflash_mlx.prefix.cache import PrefixOptions
    from dflash_mlx.ranks import Ranks
    from dflash_mlx.serve.served import Access, Limits

Client = Literal["openai", "claude-code", "codex", "aider", "continue", "cline", "open-webui"]
LOOPBACK = "127.0.0.1"
MIB, GIB = 1 << 20, 1 << 30
KEPT = 4 * GIB  # of prefixes, where that is no more than a quarter of what is free


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
    cache_memory: Annotated[
        float | None,
        _work(
            "--cache-memory",
            help="GiB for prefixes of earlier requests, 0 for none; by default 4, or less",
            metavar="GIB",
        ),
    ] = None
    cache_dir: Annotated[
        Path | None,
        _work("--cache-dir", help="Folder where they survive a restart", metavar="FOLDER"),
    ] = None
    cache_disk: Annotated[
        float, _work("--cache-disk", help="Most GiB of files in it", metavar="GIB")
    ] = 32
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

    def check(self, ranks: Ranks) -> None:
        """Refuse what makes no sense together, or for several processes.

        Raises:
            UsageError: there is such.
        """
        for name, value in (("memory", self.cache_memory or 0), ("disk", self.cache_disk)):
            if not 0 <= value < 1 << 20:
                raise UsageError(f"--cache-{name} is {value}, expected 0 or more GiB")
        if self.cache_memory == 0 and self.cache_dir is not None:
            raise UsageError("--cache-dir needs memory to work with; leave --cache-memory out")
        if self.cache_dir is not None and ranks.size > 1:
            raise UsageError("--cache-dir needs a single process; leave it out, or start just one")

    def budgets(self, pair: Pair) -> tuple[EngineOptions, PrefixOptions]:
        """What running requests may take, and what is kept of earlier ones."""
        from dflash_mlx.engine import EngineOptions
        from dflash_mlx.engine.memory import available
        from dflash_mlx.prefix.cache import PrefixOptions

        free = available(pair)
        kept = min(KEPT, free // 4)
        if self.cache_memory is not None:
            kept = round(self.cache_memory * GIB)
        memory = free - kept if self.memory is None else self.memory * GIB
        engine = EngineOptions(self.places, self.queue, max(memory, 1))
        return engine, PrefixOptions(kept, self.cache_dir, round(self.cache_disk * GIB))

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


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
