"""What the engine brings for one request, as parts of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..generation import Response
from ..loading import Pair
from ..logprobs import TokenLogprob
from ..splitting import Splitter
from ..stats import Stats
from .calls import Calls
from .parts import Outcome, Part, Text, Thinking
from .probabilities import OfAnswer
from .prompt import Prompt
from .wanted import Wanted

TAIL = 64  # tokens, in which the stop text of an answer is looked for


class Answer:
    """One answer in the making.

    Attributes:
        outcome: how it ended; None before.
    """

    def __init__(self, pair: Pair, wanted: Wanted, prompt: Prompt) -> None:
        self._pair = pair
        self._wanted = wanted
        self._splitter = self._new_splitter(prompt)
        self._of_answer = OfAnswer(pair.tokenizer, self._new_splitter(prompt), pair.eos_ids)
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text is not told yet
        self._calls = Calls(pair.tokenizer, wanted)
        self._kind = "thinking" if prompt.thinking else "answer"
        self._tail: list[int] = []
        self._thought = 0
        self.outcome: Outcome | None = None

    def add(self, response: Response) -> Iterator[Part]:
        """The parts of a round; none follow once there is an outcome."""
        ended = response.finish_reason is not None
        self._tail = [*self._tail, *response.tokens][-TAIL:]
        pieces = self._split(response.text, ended)
        self._thought += _thought(pieces, len(response.tokens))
        self._logprobs += self._of_answer.among(response.logprobs)
        for kind, text in pieces:
            yield from self._segment(kind, text)
            if self._wanted.one_call and self._calls.count:
                break
        if ended and self._kind == "tool":
            yield from self._close()
        if ended and self._logprobs:
            yield self._text("")
        if ended or (self._wanted.one_call and self._calls.count):
            self.outcome = self._end(response.finish_reason or "stop", response.stats)

    def _text(self, text: str) -> Text:
        known, self._logprobs = tuple(self._logprobs), []
        return Text(text, known)

    def _new_splitter(self, prompt: Prompt) -> Splitter | None:
        """None for a bare prompt, which is continued as it is, markers and all."""
        if self._wanted.prompt is not None:
            return None
        tools = bool(self._wanted.tools)
        return Splitter(self._pair.tokenizer, thinking=prompt.thinking, tools=tools)

    def _split(self, text: str, ended: bool) -> Sequence[tuple[str, str]]:
        return self._splitter.split(text, ended=ended) if self._splitter else [("answer", text)]

    def _segment(self, kind: str, text: str) -> Iterator[Part]:
        if self._kind == "tool" and kind != "tool":
            yield from self._close()
        self._kind = kind
        if kind == "tool":
            yield from self._calls.add(text)
        elif kind == "thinking" and text:
            yield Thinking(text)
        # Models put line breaks between calls and after them.
        elif text and not (self._calls.count and not text.strip()):
            yield self._text(text)

    def _close(self) -> Iterator[Part]:
        self._kind = "answer"
        yield from self._calls.close()

    def _end(self, reason: str, stats: Stats) -> Outcome:
        if self._calls.count and reason == "stop":
            reason = "calls"
        return Outcome(reason, stats, self._stop(reason), self._thought)

    def _stop(self, reason: str) -> str | None:
        """The stop text that ended the answer: the engine tells only that one did."""
        stops = self._wanted.options.stop
        if reason != "stop" or not stops or not self._tail or self._tail[-1] in self._pair.eos_ids:
            return None
        tail = self._pair.tokenizer.decode(self._tail)
        found = [(tail.find(stop), stop) for stop in stops if stop in tail]
        return min(found)[1] if found else None


def _thought(pieces: Sequence[tuple[str, str]], tokens: int) -> int:
    """How many of a round's tokens are thinking; by its share of the text where both are there."""
    lengths = [len(text) if kind == "thinking" else 0 for kind, text in pieces]
    if all(kind == "thinking" for kind, _ in pieces):
        return tokens
    return round(tokens * sum(lengths) / max(1, sum(len(text) for _, text in pieces)))
