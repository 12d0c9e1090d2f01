"""What a server serves and allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from ..engine import Engine
from ..loading import Pair
from ..options import Options
from ..pairs import find
from ..prefix.cache import PrefixCache
from ..prefix.snapshot import is_marked
from .refusal import Refused

MIB = 1 << 20
COMPOSED = 4  # characters that a tokenizer may make one of before it looks


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server.

    Attributes:
        body: bytes of a request.
        body_s: seconds in which it must have come.
        keep_alive_s: seconds after which a silent stream says that it lives.
    """

    body: int = 16 * MIB
    body_s: float = 60.0
    keep_alive_s: float = 10.0


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        keys: any of them opens the server; none leaves it open.
        hosts: names in a request's Host header; None allows all.
        origins: web pages that browsers may let ask, as `https://name:port`.
    """

    keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] | None = None
    origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """A request that was answered, for the log.

    Attributes:
        status: 499 where the client left.
        seconds: from its first byte to the last of the answer.
        answer: figures of an answer; None where there was none.
    """

    method: str
    path: str
    status: int
    seconds: float
    answer: dict[str, object] | None = None


@dataclass(frozen=True)
class Served:
    """A pair and how it is offered.

    Attributes:
        names: it goes by; the first is the one told.
        defaults: what requests get that do not say.
        think: whether to think where a request does not say; None leaves it to the template.
        report: called for every request that was answered.
        prefixes: the engine's, for its figures; None where it keeps none.
    """

    pair: Pair
    engine: Engine
    names: tuple[str, ...]
    defaults: Options = Options()  # noqa: RUF009 - frozen
    think: bool | None = None
    limits: Limits = Limits()
    access: Access = Access()
    report: Callable[[Line], None] = lambda line: None
    prefixes: PrefixCache | None = None

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.names[0]

    @cached_property
    def most_characters(self) -> int:
        """No text that is longer fits into the context, whatever its tokens are."""
        longest = max(map(len, self.pair.tokenizer.get_vocab()))
        return self.pair.max_context * longest * COMPOSED

    @cached_property
    def marks(self) -> bool:
        """Whether prefixes can be left at some places only, which have to be known before."""
        return self.prefixes is not None and is_marked(self.pair)

    def check(self, model: str | None) -> None:
        """Refuse a model that is not the one served; names are compared and lead nowhere else.

        Raises:
            Refused: there is no such model here.
        """
        if model is None or model.lower() in (name.lower() for name in self.names):
            return
        shown = model if len(model) < 100 and model.isprintable() else "of that name"
        raise Refused(
            f"no model {shown} is served here; there is {self.name}",
            404,
            param="model",
            code="model_not_found",
        )


def names_of(pair: Pair, given: str, aliases: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names a pair goes by: its short name, its own, what it was loaded by, and others."""
    known = find(pair.name) or find(given)
    names = [known.name] if known else []
    names += [pair.name, given.rstrip("/").rpartition("/")[2], given, *aliases]
    return tuple(dict.fromkeys(name for name in names if name))
