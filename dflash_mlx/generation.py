"""From a prompt to text: the round loop on ids, and the streaming of its text.

The loop: prefill, then draft, verify, accept, commit until the text ends. Drafting costs one
pass of a small network, verification one pass of the target whatever the number of rows as long
as reading the weights dominates; each round brings one to `width` tokens that are the target's
own. Decoding without a draft is the same loop with rounds of one token.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from .adaptive import AdaptiveDecoder
from .copying import LookupDecoder
from .decode import Decoder, DraftDecoder, PlainDecoder, first_token
from .errors import UsageError
from .loading import Pair
from .options import AUTO, Options
from .session import Progress, Session
from .stats import Round, Stats
from .text import TextStream
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
    session = session or Session(pair.target, pair.draft)
    limit = _limit(pair, prompt, options)
    if limit == 0:
        yield Round((), 0, 0, "length")
        return
    chunk = options.prefill_chunk
    if pair.memory is not None:
        pair.memory.check(len(prompt), limit)
        chunk = pair.memory.chunk(chunk, len(prompt))
    seed = secrets.randbits(32) if options.seed is None else options.seed
    logits, cached = session.prefill(prompt, chunk=chunk, progress=progress)
    if stats is not None:
        stats.prompt_tokens, stats.cached_tokens = len(prompt), cached
    anchor = first_token(logits, prompt, options.sampling, seed)
    room = limit - 1
    ending = _ending((anchor,), room, pair.eos_ids)
    yield Round((anchor,), 0, 0, ending)

    decoder = _decoder(pair, session, options, seed)
    while ending is None:
        result = decoder.next(anchor, room)
        tokens = _cut(result.tokens, room, pair.eos_ids)
        decoder.commit(anchor, tokens)
        anchor, room = tokens[-1], room - len(tokens)
        ending = _ending(tokens, room, pair.eos_ids)
        accepted = min(result.accepted, len(tokens))
        yield Round(tokens, result.drafted, accepted, ending, result.copied)


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
    stats = Stats()
    text = TextStream(pair.tokenizer, pair.eos_ids, options.stop)
    began = time.perf_counter()
    first: float | None = None
    source = rounds(pair, pair.encode(prompt), options, session, stats, progress)
    for round_ in source:
        now = time.perf_counter()
        first = first or now
        stats.ttft_s, stats.decode_s = first - began, now - first
        tokens, piece, stopped = text.add(round_.tokens)
        reason = "stop" if stopped else round_.finish_reason
        if len(tokens) < len(round_.tokens):
            accepted = min(round_.accepted, len(tokens))
            round_ = replace(round_, tokens=tokens, accepted=accepted, finish_reason=reason)
        stats.add(round_, first=stats.generated_tokens == 0)
        if reason:
            piece += text.finish()
            reason = "stop" if text.stopped else reason
        yield _response(piece, round_, reason, stats)
        if reason:
            return


def generate(
    pair: Pair,
    prompt: str | Sequence[int],
    options: Options | None = None,
    session: Session | None = None,
) -> str:
    """Generate the whole text; arguments as `stream_generate`."""
    return "".join(r.text for r in stream_generate(pair, prompt, options, session))


def _decoder(pair: Pair, session: Session, options: Options, seed: int) -> Decoder:
    """The decoder that `options` asks for and the pair allows."""
    drafts = pair.draft is not None and options.speculate
    lookup = options.looks_up(drafts)
    if drafts and options.block == AUTO:
        chooser = policy_of(pair, options)
        return AdaptiveDecoder(pair, session, options, seed, chooser, lookup)
    decoder: type[Decoder] = DraftDecoder if drafts else PlainDecoder
    alone = decoder(pair, session, options, seed)
    return LookupDecoder(pair, session, options, seed, alone) if lookup else alone


def _limit(pair: Pair, prompt: Sequence[int], options: Options) -> int:
    """How many tokens may be generated."""
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


def _ending(tokens: tuple[int, ...], room: int, eos_ids: frozenset[int]) -> str | None:
    if tokens[-1] in eos_ids:
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
    )
