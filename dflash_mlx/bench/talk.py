"""One conversation in one way of decoding, timed; warm caches between its turns, as in a chat."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm import stream_generate as mlx_lm_stream
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache
from mlx_lm.sample_utils import make_sampler

from ..conversation import Conversation, Piece
from ..errors import UnsupportedError, UsageError
from ..loading import Pair
from ..options import Options
from ..sampling import Sampling
from .records import Arm, Drafting, Turn


class Talk(Protocol):
    """A conversation that is under way."""

    def prompt(self, text: str) -> list[int]:
        """What the model would get if this were asked now."""

    def ask(self, text: str) -> Turn:
        """Have a message answered."""


class Talks:
    """Opens conversations with a pair.

    Args:
        think: whether a model that can think should; None leaves it to its template.
    """

    def __init__(self, pair: Pair, think: bool | None) -> None:
        self.pair = pair
        # With a draft at hand even plain decoding would prepare its context in the prefill.
        self._alone = replace(pair, draft=None)
        self._think = think

    def open(self, arm: Arm, options: Options) -> Talk:
        """Begin one.

        Raises:
            UnsupportedError: mlx-lm cannot sample so.
        """
        if arm.kind == "mlx-lm":
            return _StockTalk(self.pair, options, self._think)
        options = replace(options, block=arm.block)
        if arm.kind == "plain":
            return _OurTalk(self._alone, replace(options, lookup="off"), self._think)
        return _OurTalk(self.pair, options, self._think)


class _OurTalk:
    """By this package, with a draft or without."""

    def __init__(self, pair: Pair, options: Options, think: bool | None) -> None:
        self._conversation = Conversation(pair, think=think)
        self._options = options

    def prompt(self, text: str) -> list[int]:
        return prompt_behind(self._conversation, text)

    def ask(self, text: str) -> Turn:
        mx.reset_peak_memory()
        return turn_of(self._conversation.ask(text, self._options))


class _StockTalk:
    """By mlx-lm's own loop on the same weights."""

    def __init__(self, pair: Pair, options: Options, think: bool | None) -> None:
        self._pair = pair
        self._conversation = Conversation(pair, think=think)
        self._options = options
        self._sampler = stock_sampler(options.sampling)
        self._cache = make_prompt_cache(pair.target.model)
        self._seen: list[int] = []

    def prompt(self, text: str) -> list[int]:
        return prompt_behind(self._conversation, text)

    def ask(self, text: str) -> Turn:
        prompt = self.prompt(text)
        room = self._pair.max_context - len(prompt)
        if room <= 0:  # mlx-lm itself would go on beyond what the model was made for
            raise UsageError(f"the prompt has {len(prompt)} tokens, too many for the context")
        mx.reset_peak_memory()
        if self._options.seed is not None:
            mx.random.seed(self._options.seed)
        began = time.perf_counter()
        cached = self._rewind(prompt)
        ids: list[int] = []
        said, first, reason = "", 0.0, None
        for response in mlx_lm_stream(
            self._pair.target.model,
            self._pair.tokenizer,
            prompt[cached:],
            max_tokens=min(self._options.max_tokens, room),
            sampler=self._sampler,
            prompt_cache=self._cache,
        ):
            first = first or time.perf_counter()
            said, reason = said + response.text, response.finish_reason
            if len(ids) < response.generation_tokens:
                ids.append(response.token)
        ended = time.perf_counter()
        self._seen = [*prompt, *ids]
        thinking, answer = self._split(said)
        self._conversation.messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": answer},
        ]
        return Turn(
            prompt_tokens=len(prompt),
            cached_tokens=cached,
            ids=tuple(ids),
            tokens=len(ids),
            rounds=(),
            ttft_s=first - began,
            decode_s=ended - first,
            peak_bytes=mx.get_peak_memory(),
            text=answer,
            thinking=thinking,
            finish_reason=reason,
        )

    def _rewind(self, prompt: Sequence[int]) -> int:
        """How many of the prompt's tokens stay in the cache."""
        if not self._seen:
            return 0
        if not can_trim_prompt_cache(self._cache):
            self._cache = make_prompt_cache(self._pair.target.model)
            return 0
        held: int = self._cache[0].offset
        pairs = zip(prompt[: len(prompt) - 1], self._seen, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        kept = min(len(prompt) - 1, len(self._seen), held) if common is None else min(common, held)
        trim_prompt_cache(self._cache, held - kept)
        return kept

    def _split(self, text: str) -> tuple[str, str]:
        """Thinking and answer."""
        tokenizer = self._pair.tokenizer
        if not tokenizer.has_thinking or tokenizer.think_end not in text:
            return "", text
        thinking, _, answer = text.rpartition(tokenizer.think_end)
        return thinking.removeprefix(tokenizer.think_start).strip("\n"), answer.lstrip("\n")


def prompt_behind(conversation: Conversation, text: str) -> list[int]:
    """The ids of the conversation with one more message; it stays as it is."""
    conversation.messages.append({"role": "user", "content": text})
    try:
        return conversation.prompt_ids
    finally:
        conversation.messages.pop()


def turn_of(pieces: Iterable[Piece]) -> Turn:
    """Read an answer to its end."""
    ids: list[int] = []
    rounds: list[Drafting] = []
    parts: dict[bool, list[str]] = {False: [], True: []}
    last, drafted, counted = None, 0, 0
    for piece in pieces:
        parts[piece.thinking].append(piece.text)
        if piece.response is last:
            continue
        last = piece.response
        ids += last.tokens
        if last.stats.rounds > counted:
            new, counted = last.stats.drafted - drafted, last.stats.rounds
            rounds.append(Drafting(new, last.accepted, len(last.tokens)))
            drafted += new
    assert last is not None, "an answer has one response at least"
    return Turn(
        prompt_tokens=last.stats.prompt_tokens,
        cached_tokens=last.stats.cached_tokens,
        ids=tuple(ids),
        tokens=len(ids),
        rounds=tuple(rounds) if drafted else (),  # in plain decoding every token is one
        ttft_s=last.stats.ttft_s,
        decode_s=last.stats.decode_s,
        peak_bytes=mx.get_peak_memory(),
        text="".join(parts[False]),
        thinking="".join(parts[True]),
        finish_reason=last.finish_reason,
    )


def stock_sampler(sampling: Sampling) -> Any:
    """mlx-lm's sampler of the same kind.

    Raises:
        UnsupportedError: it has no such options.
    """
    plain = Sampling(sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
    if sampling != plain:
        raise UnsupportedError(
            "the mlx-lm baseline takes no penalties and no --logit-bias; "
            "leave them out, or use --baseline plain"
        )
    return make_sampler(sampling.temperature, sampling.top_p, sampling.min_p, top_k=sampling.top_k)
