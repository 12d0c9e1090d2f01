"""Servers for tests: a pair that can think and call tools, an engine that says what it is told,
and both behind a socket."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
from mlx_lm.tool_parsers import json_tools, qwen3_coder
from starlette.testclient import TestClient

from dflash_mlx.engine import Counters, Engine, Ticket
from dflash_mlx.errors import Busy
from dflash_mlx.generation import Response
from dflash_mlx.loading import Pair
from dflash_mlx.logprobs import TokenLogprob
from dflash_mlx.options import Options
from dflash_mlx.prefix.cache import PrefixCache
from dflash_mlx.serve.app import application
from dflash_mlx.serve.served import Served
from dflash_mlx.serve.server import address, bound, server
from dflash_mlx.stats import Round, Stats

from .tiny import letters, tiny_pair, tokenizer

PARSERS = {"json": json_tools, "xml": qwen3_coder}
TEMPLATE = (
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]
JSON_CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Kyiv", "days": 2}}</tool_call>'
XML_CALL = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nKyiv\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"
)
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
}


def agent_pair(parser: str = "json", **more: Any) -> Pair:
    """The tiny pair with think markers and tool calls."""
    pair = tiny_pair(**more)
    fast = tokenizer(TEMPLATE, thinking=True)._tokenizer
    module = PARSERS[parser]
    pair.tokenizer = TokenizerWrapper(
        fast,
        BPEStreamingDetokenizer,
        tool_call_start=module.tool_call_start,
        tool_call_end=module.tool_call_end,
        tool_parser=module.parse_tool_call,
    )
    return pair


class Scripted:
    """An engine that answers every request with the same texts, a round each.

    Attributes:
        asked: prompts and options, as they were submitted.
        tickets: as they were given out.
    """

    def __init__(self, pair: Pair, *texts: str, reason: str = "stop") -> None:
        self.pair, self.texts, self.reason = pair, texts, reason
        self.asked: list[tuple[list[int], Options]] = []
        self.tickets: list[Ticket] = []
        self.error: Exception | None = None  # what `submit` raises
        self.breaks: Exception | None = None  # what ends an answer after its texts
        self.holds = False  # whether answers stay open after their texts
        self.logprobs = False  # whether tokens have them
        self.failure = None
        self.vanishes = False  # whether they then end without an end
        self.counters = Counters()

    def submit(
        self,
        prompt: Sequence[int],
        options: Options,
        notify: Callable[[], None] | None = None,
        stable: Sequence[int] = (),
    ) -> Ticket:
        if self.error is not None:
            raise self.error
        self.asked.append((list(prompt), options))
        ticket = Ticket(lambda: None, notify)
        self.tickets.append(ticket)
        for response in self._responses(len(prompt)):
            ticket.tell(response)
        if self.breaks is not None:
            ticket.tell(self.breaks)
        if self.vanishes:
            ticket.tell(None)
        return ticket

    def close(self) -> None:
        self.error = Busy("closed", 1.0)
        for ticket in self.tickets:
            ticket.tell(Busy("closed", 1.0))

    @property
    def prompt(self) -> str:
        """The last prompt as text."""
        return str(self.pair.tokenizer.decode(self.asked[-1][0]))

    def _responses(self, prompt: int) -> Iterator[Response]:
        stats = Stats(prompt_tokens=prompt, cached_tokens=3)
        for index, text in enumerate(self.texts):
            last = index == len(self.texts) - 1 and not (self.holds or self.breaks)
            tokens = tuple(self.pair.tokenizer.encode(text, add_special_tokens=False))
            if last and self.reason == "stop":
                tokens = (*tokens, *self.pair.eos_ids)
            round_ = Round(tokens, 3, 1, self.reason if last else None)
            stats.add(round_, first=index == 0)
            known = tuple(TokenLogprob(t, -0.5) for t in tokens) if self.logprobs else ()
            end = round_.finish_reason
            yield Response(text, tokens, 1, prompt, 0.0, len(tokens), 0.0, 0.0, end, stats, known)


def serve_texts(*texts: str, parser: str = "json", **more: Any) -> tuple[TestClient, Scripted]:
    """A client of a server that always says `texts`."""
    pair = agent_pair(parser)
    engine = Scripted(pair, *texts)
    served = Served(pair, engine, ("tiny", "other-name"), **more)  # type: ignore[arg-type]
    return TestClient(application(served), base_url="http://localhost"), engine


def in_letters(pair: Pair, max_tokens: int = 12) -> Options:
    """Defaults under which a tiny pair answers in letters."""
    bias = tuple((token, 100.0) for token in letters(pair.tokenizer))
    plain = Options(max_tokens=max_tokens)
    return replace(plain, sampling=replace(plain.sampling, logit_bias=bias))


@contextmanager
def listening(served: Served) -> Iterator[str]:
    """A server on a socket of its own, in a thread; its address."""
    opened = bound("127.0.0.1", 0)
    running = server(served)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        while not running.started and thread.is_alive():
            time.sleep(0.01)
        yield address(opened)
    finally:
        running.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def real_server(**more: Any) -> Iterator[tuple[str, Served]]:
    """A server of a tiny pair with a real engine; its address."""
    pair = agent_pair()
    prefixes = PrefixCache(pair)
    with closing(prefixes), Engine(pair, prefixes=prefixes) as engine:
        served = Served(pair, engine, ("tiny",), in_letters(pair), prefixes=prefixes, **more)
        with listening(served) as url:
            yield url, served


def events(text: str) -> list[Any]:
    """The data of server-sent events, `[DONE]` left out."""
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
