"""From a prompt to text: the round loop on ids, and the streaming of its text.

The loop: prefill, then draft, verify, accept, commit until the text ends. Drafting costs one
pass of a small network, verification one pass of the target whatever the number of rows as long
as reading the weights dominates; each round brings one to `width` tokens that are the target's
own. Decoding without a draft is the same loop with rounds of one token.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from .adaptive import AdaptiveDecoder
from .copying import LookupDecoder
from .decode import Decoder, DraftDecoder, PlainDecoder, Result, first_token
from .errors import UsageError
from .guide import Matcher
from .guided import GuidedDecoder, GuidedPlainDecoder, follow
from .loading import Pair
from .logprobs import TokenLogprob
from .options import AUTO, Options
from .session import Chunk, Progress, Session
from .stats import Round, Stats
from .text import TextStream
from .thinking import ThinkingMatcher
from .tune.choose import policy_of


@dataclass(frozen=True)
class Response:
    """A piece of the answer: what one round added. Names as in mlx-lm where they mean the same.

    Attributes:
        text: text that became certain with this round; may be empty.
        tokens: the round's ids, the stop token included.
        accepted: how many of them the draft proposed, from the first on.
        prompt_tps, generation_tps: tokens per second so far.
        peak_memory: in GB.
        finish_reason: "stop" or "length" in the last piece, else None.
        stats: counts and times so far; one object for the whole answer.
        logprobs: of each of `tokens`, if `Options.logprobs` asks for them.
    """

    text: str
    tokens: tuple[int, ...]
    accepted: int
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    finish_reason: str | None
    stats: Stats
    logprobs: tuple[TokenLogprob, ...] = ()


class Course:
    """One generation between its rounds, for who runs them: `prefill`, `first`, then `next`.

    Args:
        pair, prompt, options, stats: as of `rounds`.
        session: as of `rounds`; a new one if None.

    Attributes:
        anchor: the last token, not in the caches yet.
        room: how many more tokens may come.
        ending: "stop" or "length" once it is over.
        seed: of its random keys.
        chunk: prompt tokens per pass.

    Raises:
        UsageError: as `rounds`.
    """

    def __init__(
        self,
        pair: Pair,
        prompt: Sequence[int],
        options: Options,
        session: Session | None = None,
        stats: Stats | None = None,
    ) -> None:
        self.pair, self.prompt, self.options = pair, prompt, options
        self.room = limit_of(pair, prompt, options)
        self.chunk = options.prefill_chunk
        if pair.memory is not None and self.room:
            pair.memory.check(len(prompt), self.room)
            self.chunk = pair.memory.chunk(self.chunk, len(prompt))
        self.session = session or Session(pair.target, pair.draft)
        self.seed = secrets.randbits(32) if options.seed is None else options.seed
        self.ending: str | None = None if self.room else "length"
        self.anchor = -1
        self._stats = stats or Stats()
        self._decoder: Decoder | None = None
        self._matcher = _matcher(pair, options) if self.room else None
        self._first: Result

    def prefill(self) -> Iterator[Chunk]:
        """Bring the caches to the end of the prompt, a pass at a time."""
        if self.room == 0:
            return
        logits = None
        for part in self.session.prefilling(self.prompt, chunk=self.chunk):
            self._stats.prompt_tokens = len(self.prompt)
            self._stats.cached_tokens = part.cached
            logits = part.logits
            yield part
        assert logits is not None
        options, matcher, ranks = self.options, self._matcher, self.pair.ranks
        allowed = matcher.allowed() if matcher else None
        self._first = first_token(
            logits, self.prompt, options.sampling, self.seed, options.logprobs, allowed, ranks
        )
        if matcher:
            follow(matcher, self._first, 1)
        self.anchor = self._first.tokens[0]

    def first(self) -> Round:
        """The token that comes out of the prefill."""
        if self.room == 0:
            return Round((), 0, 0, self.ending)
        return self._round(self._first)

    def next(self) -> Round:
        """The next round, by a decoder of its own."""
        if self._decoder is None:
            self._decoder = _decoder(
                self.pair, self.session, self.options, self.seed, self._matcher
            )
        return self._take(self._decoder.next(self.anchor, self.room), self._decoder.commit)

    def join(self, result: Result, commit: Callable[[int, Sequence[int]], None]) -> Round:
        """Take a round that somebody else ran, at this session as `next` would have left it."""
        self._decoder = None  # it may have issued something ahead
        return self._take(result, commit)

    @property
    def drafts(self) -> bool:
        """Whether rounds are to be drafted."""
        return self.pair.draft is not None and self.options.speculate

    def _take(self, result: Result, commit: Callable[[int, Sequence[int]], None]) -> Round:
        """Cut what a round brought where the text ends, and have the rest committed."""
        tokens = _cut(result.tokens, self.room, self.pair.eos_ids)
        commit(self.anchor, tokens)
        return self._round(result.cut(len(tokens)))

    def _round(self, done: Result) -> Round:
        self.anchor, self.room = done.tokens[-1], self.room - len(done.tokens)
        self.ending = _ending(done.tokens, self.room, self.pair.eos_ids, self._matcher)
        return Round(
            done.tokens, done.drafted, done.accepted, self.ending, done.logprobs, done.copied
        )


class Telling:
    """Makes responses of the rounds of one generation.

    Attributes:
        stats: counts and times so far; the clock starts when this is made.
    """

    def __init__(self, pair: Pair, options: Options) -> None:
        self.stats = Stats()
        self._text = TextStream(pair.tokenizer, pair.eos_ids, options.stop)
        self._began = time.perf_counter()
        self._first: float | None = None

    def add(self, round_: Round) -> Response:
        """The response of the next round; with a `finish_reason` where a stop text ended it."""
        now = time.perf_counter()
        self._first = self._first or now
        self.stats.ttft_s, self.stats.decode_s = self._first - self._began, now - self._first
        tokens, piece, stopped = self._text.add(round_.tokens)
        reason = "stop" if stopped else round_.finish_reason
        if len(tokens) < len(round_.tokens):
            accepted, logprobs = min(round_.accepted, len(tokens)), round_.logprobs[: len(tokens)]
            round_ = Round(tokens, round_.drafted, accepted, reason, logprobs, round_.copied)
        self.stats.add(round_, first=self.stats.generated_tokens == 0)
        if reason:
            piece += self._text.finish()
            reason = "stop" if self._text.stopped else reason
        return _response(piece, round_, reason, self.stats)

    def cut(self) -> Response:
        """The last response of an answer that nobody goes on with: the text held back."""
        return _response(self._text.finish(), Round((), 0, 0), "length", self.stats)


def rounds(
    pair: Pair,
    prompt: Sequence[int],
    options: Options | None = None,
    session: Session | None = None,
    stats: Stats | None = None,
    progress: Progress | None = None,
) -> Iterator[Round]:
    """Decode on token ids; the first round is the token of the prefill.

    Args:
        pair: target, draft and tokenizer.
        prompt: at least one id.
        options: see `Options`.
        session: the conversation to go on with; ids it shares with the prompt are not computed
            again. Consistent whenever the iterator is left, however it is left.
        stats: receives prompt and cache counts.
        progress: called during the prefill with tokens done and to do.

    Raises:
        UsageError: the prompt is empty or longer than the context, prompt and answer do not fit
            into memory, or an option does not fit.
    """
    options = options or Options()
    course = Course(pair, prompt, options, session, stats)
    if course.ending is not None:
        yield course.first()
        return
    ranks = pair.ranks
    given = replace(options, prefill_chunk=course.chunk).as_dict()
    what = {"prompt": list(prompt), "options": given, "drafts": pair.draft is not None}
    with ranks.running("answer", session=ranks.name(session), **what):
        if ranks.leads:
            with ranks.outside(last=True):
                ranks.together(lambda: None)  # the others read the options
        for part in course.prefill():
            if progress:
                with ranks.outside():
                    progress(part.done, part.total)
            ranks.go_on()
        round_ = course.first()
        while round_.finish_reason is None:
            with ranks.outside():
                yield round_
            ranks.go_on()
            round_ = course.next()
        with ranks.outside(last=True):
            yield round_


def stream_generate(
    pair: Pair,
    prompt: str | Sequence[int],
    options: Options | None = None,
    session: Session | None = None,
    progress: Progress | None = None,
) -> Iterator[Response]:
    """Generate text, one `Response` per round.

    Args:
        pair: target, draft and tokenizer.
        prompt: text, encoded as it is (no chat template), or ids.
        options: see `Options`.
        session: see `rounds`.
        progress: see `rounds`.

    Raises:
        UsageError: as `rounds`.
    """
    options = options or Options()
    told = Telling(pair, options)
    source = rounds(pair, pair.encode(prompt), options, session, told.stats, progress)
    for round_ in source:
        response = told.add(round_)
        yield response
        if response.finish_reason:
            return


def generate(
    pair: Pair,
    prompt: str | Sequence[int],
    options: Options | None = None,
    session: Session | None = None,
) -> str:
    """Generate the whole text; arguments as `stream_generate`."""
    return "".join(r.text for r in stream_generate(pair, prompt, options, session))


def _matcher(pair: Pair, options: Options) -> Matcher | None:
    if options.guide is None:
        return None
    if options.thinking is None:
        return Matcher(options.guide, pair.words)
    return ThinkingMatcher(options.guide, pair.words, options.thinking, pair.eos_ids)


def _decoder(
    pair: Pair, session: Session, options: Options, seed: int, matcher: Matcher | None = None
) -> Decoder:
    """The decoder that `options` asks for and the pair allows."""
    drafts = pair.draft is not None and options.speculate
    if matcher is not None:
        kind = GuidedDecoder if drafts else GuidedPlainDecoder
        return kind(pair, session, options, seed, matcher)
    lookup = options.looks_up(drafts)
    if drafts and options.block == AUTO:
        chooser = policy_of(pair, options)
        return AdaptiveDecoder(pair, session, options, seed, chooser, lookup)
    decoder: type[Decoder] = DraftDecoder if drafts else PlainDecoder
    alone = decoder(pair, session, options, seed)
    return LookupDecoder(pair, session, options, seed, alone) if lookup else alone


def limit_of(pair: Pair, prompt: Sequence[int], options: Options) -> int:
    """How many tokens may be generated.

    Raises:
        UsageError: as `rounds`.
    """
    if not prompt:
        raise UsageError("the prompt is empty; give at least one token")
    if len(prompt) >= pair.max_context:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens, the model's context holds {pair.max_context}; "
            "shorten the prompt or start a new conversation"
        )
    vocab = pair.target.vocab_size
    if min(prompt) < 0 or max(prompt) >= vocab:
        raise UsageError(f"the prompt has ids outside the vocabulary (0 to {vocab - 1})")
    options.sampling.check_vocabulary(vocab)
    return min(options.max_tokens, pair.max_context - len(prompt))


def _cut(tokens: tuple[int, ...], room: int, eos_ids: frozenset[int]) -> tuple[int, ...]:
    """The tokens up to the first end-of-text token, at most `room`."""
    end = next((i + 1 for i, t in enumerate(tokens) if t in eos_ids), len(tokens))
    return tokens[: min(end, room)]


def _ending(
    tokens: tuple[int, ...], room: int, eos_ids: frozenset[int], matcher: Matcher | None
) -> str | None:
    if tokens[-1] in eos_ids or (matcher is not None and matcher.ended):
        return "stop"
    return "length" if room == 0 else None


def _response(text: str, round_: Round, reason: str | None, stats: Stats) -> Response:
    return Response(
        text=text,
        tokens=round_.tokens,
        accepted=round_.accepted,
        prompt_tokens=stats.prompt_tokens,
        prompt_tps=stats.prefill_tok_s,
        generation_tokens=stats.generated_tokens,
        generation_tps=stats.decode_tok_s,
        peak_memory=mx.get_peak_memory() / 1e9,
        finish_reason=reason,
        stats=stats,
        logprobs=round_.logprobs,
    )
