"""How few bits a draft can do with: measured on texts of the target's own.

The source target invents requests and answers them. What the converted target would say instead
is its drift: KL(source || converted) over these answers, in nats per token. It then answers the
requests itself, greedily, and these texts are what drafts are tried on. Greedy rounds never change
a text, so nothing has to be decoded again: along a finished text every block is drafted behind its
anchor and compared with what follows, which gives exactly the rounds that decoding would have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import mlx.core as mx

from ..checkpoint import read_config
from ..conversation import Conversation
from ..drafts.dflash import DFlashDraft
from ..errors import UsageError
from ..generation import rounds
from ..loading import Pair, cast_floating, compute_dtype, load
from ..options import Options
from ..sampling import Sampling, process
from ..targets import target_for
from ..targets.base import Target
from .choose import Choice, choose
from .draft import build_draft, plan_draft
from .plan import Source
from .recipe import DraftRecipe, TargetRecipe
from .target import build_target

ASK = "Write one request that someone might send to an assistant. Answer with the request alone."
REQUEST, ANSWER = 48, 96  # tokens
CHUNK = 256
GREEDY = Sampling()

Step = Callable[[str], None]


@dataclass(frozen=True)
class Text:
    """Ids, of which the first `prompt` were given."""

    ids: tuple[int, ...]
    prompt: int


@dataclass(frozen=True)
class Calibration:
    """What was found.

    Attributes:
        drift: nats per token between source and converted target; 0 where nothing was converted.
        tokens: of the texts that drafts were tried on.
    """

    drift: float
    prompts: int
    tokens: int
    choice: Choice


def calibrate(
    target: Source,
    draft: Source,
    recipe: TargetRecipe,
    plain: DraftRecipe,
    *,
    count: int,
    allowed: float,
    step: Step,
) -> Calibration:
    """Measure a pair and choose the bits of its draft.

    Args:
        recipe: of the target, whose texts are then drafted.
        plain: of the draft, without bits.
        count: requests.
        allowed: share of the tokens per round that may be lost.
        step: told of what is done next.

    Raises:
        UsageError: the texts are too short to say anything.
        DFlashError: as `load`.
    """
    step("texts of the source")
    pair = load(str(target.path), speculate=False, quiet=True)
    prompts = [_request(pair, seed) for seed in range(count)]
    texts = [_answer(pair, prompt) for prompt in prompts]
    before = [_log_probabilities(pair.target, text) for text in texts] if recipe.quantises else []
    raw = read_config(target.path)
    taps = build_draft(draft, plain, raw).network.config.taps
    step("texts of the converted target")
    pair = replace(pair, target=_converted(target, recipe, taps))
    after = (_log_probabilities(pair.target, text) for text in texts)
    drift = _drift(before, list(after)) if before else 0.0
    texts = [_answer(pair, prompt) for prompt in prompts]
    read = [(text, _features(pair.target, text)) for text in texts]
    if sum(len(text.ids) - text.prompt for text, _ in read) < 4 * count:
        raise UsageError("the target's answers are too short to calibrate on; use --draft-bits")

    def measure(how: DraftRecipe) -> float:
        step(f"draft: {_name(how)}")
        return tokens_per_round(pair.target, _draft(draft, how, raw, pair), read)

    def size(how: DraftRecipe) -> int:
        return plan_draft(draft, how, raw).size

    found = choose(plain, measure, size, allowed)
    tokens = sum(len(text.ids) - text.prompt for text in texts)
    return Calibration(drift, count, tokens, found)


def tokens_per_round(
    target: Target, draft: DFlashDraft, texts: Sequence[tuple[Text, mx.array]]
) -> float:
    """Of greedy rounds along finished texts, each with the target's features."""
    counts = [_rounds(target, draft, text, features) for text, features in texts]
    done = sum(rounds_ for rounds_, _ in counts)
    return sum(tokens for _, tokens in counts) / max(1, done)


def _rounds(target: Target, draft: DFlashDraft, text: Text, features: mx.array) -> tuple[int, int]:
    """How many rounds a text takes, and how many tokens they give.

    It ends where a block would reach beyond the text: what would be accepted there is not known.
    """
    width, mask = draft.config.block_size, draft.config.mask_token_id
    context, anchor = draft.new_cache(), text.prompt
    count = tokens = 0
    while anchor + width <= len(text.ids):
        start = context.length
        state = context.begin(start, anchor - start + width, fixed=False)
        state = draft.extend(features[:, start:anchor], start, state)
        context.update(state)
        context.commit(anchor - start)
        block = target.embed_block(mx.array([[text.ids[anchor]] + [mask] * (width - 1)], mx.int32))
        hidden, _ = draft.forward(block, anchor, state)
        found = _proposed(target, draft, hidden, text.ids[anchor])
        accepted = _equal(found, text.ids[anchor + 1 : anchor + width])
        count, tokens = count + 1, tokens + accepted + 1
        anchor += accepted + 1
    return count, tokens


def _proposed(target: Target, draft: DFlashDraft, hidden: mx.array, anchor: int) -> list[int]:
    logits = draft.shape_logits(target.head(hidden[:, 1:].astype(target.dtype)))[0]
    logits, key = process(logits, None, GREEDY), mx.random.key(0)  # nothing is sampled
    ids, _ = draft.propose(hidden[0, 1:], logits, mx.array([anchor], mx.int32), GREEDY, key)
    return cast(list[int], ids.tolist())


def _equal(found: Sequence[int], wanted: Sequence[int]) -> int:
    same = 0
    while same < len(wanted) and found[same] == wanted[same]:
        same += 1
    return same


def _request(pair: Pair, seed: int) -> list[int]:
    """The ids of a request that the target invents."""
    sampled = Options(REQUEST, Sampling(temperature=1.0), seed=seed, speculate=False)
    ids = _text(pair, _asked(pair, ASK), sampled)
    return _asked(pair, pair.tokenizer.decode([i for i in ids if i not in pair.eos_ids]).strip())


def _asked(pair: Pair, text: str) -> list[int]:
    if not pair.tokenizer.has_chat_template:
        return pair.encode(text or ASK)
    conversation = Conversation(pair)
    conversation.messages.append({"role": "user", "content": text or ASK})
    return conversation.prompt_ids


def _answer(pair: Pair, prompt: Sequence[int]) -> Text:
    return Text((*prompt, *_text(pair, prompt, Options(ANSWER, speculate=False))), len(prompt))


def _text(pair: Pair, prompt: Sequence[int], options: Options) -> list[int]:
    return [token for round_ in rounds(pair, prompt, options) for token in round_.tokens]


def _log_probabilities(target: Target, text: Text) -> mx.array:
    """Behind every token from the end of the prompt on [answer, vocab], in float32."""
    hidden, _ = _read(target, text)
    logits = target.logits(hidden[:, text.prompt - 1 : -1])[0].astype(mx.float32)
    found = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(found)
    return found


def _features(target: Target, text: Text) -> mx.array:
    _, features = _read(target, text)
    assert features is not None
    return features


def _read(target: Target, text: Text) -> tuple[mx.array, mx.array | None]:
    """Hidden states and features of a whole text."""
    cache, hidden, features = target.new_cache(), [], []
    for start in range(0, len(text.ids), CHUNK):
        ids = mx.array([text.ids[start : start + CHUNK]], mx.int32)
        state = cache.begin(start, ids.shape[1], fixed=False)
        rows, tapped, state = target.forward(ids, start, state)
        cache.update(state)
        cache.commit(ids.shape[1])
        hidden.append(rows)
        features += [] if tapped is None else [tapped]
        mx.eval(rows, features, cache.arrays())
    return mx.concatenate(hidden, axis=1), mx.concatenate(features, axis=1) if features else None


def _drift(before: Sequence[mx.array], after: Sequence[mx.array]) -> float:
    """Mean KL divergence, in nats per token."""
    rows = [(mx.exp(p) * (p - q)).sum(axis=-1) for p, q in zip(before, after, strict=True)]
    return cast(float, mx.concatenate(rows).mean().item())


def _converted(source: Source, recipe: TargetRecipe, taps: Sequence[int]) -> Target:
    """The target as it will be stored, with the draft's taps."""
    lm, _ = build_target(source, recipe)
    stored = next(v for _, v in _floating(lm))
    cast_floating(lm, compute_dtype(stored.dtype))
    _widen(lm, recipe.mode)
    mx.eval(lm.parameters())
    return target_for(lm, taps)


def _draft(source: Source, recipe: DraftRecipe, target: dict[str, Any], pair: Pair) -> DFlashDraft:
    """A draft as it will be stored, in the type that is computed in."""
    vocabulary = max(pair.tokenizer.get_vocab().values()) + 1
    scale = pair.target.embed_scale
    built = build_draft(source, recipe, target, embed_scale=scale, vocabulary=vocabulary)
    built.network.set_dtype(compute_dtype(built.network.dtype))
    _widen(built.network, "affine")
    return built.network.prepare()


def _widen(model: Any, mode: str) -> None:
    """Weights in few bits as plain ones of the same values, where their products are slow."""
    from mlx_lm.utils import dequantize_model

    if mode == "affine" and mx.default_device().type == mx.cpu:
        dequantize_model(model)


def _floating(model: Any) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    flat = cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))
    return [(n, v) for n, v in flat if mx.issubdtype(v.dtype, mx.floating)]


def _name(recipe: DraftRecipe) -> str:
    stated = {k: v for k, v in recipe.as_dict().items() if k not in ("group_size", "dtype")}
    return ", ".join(f"{k} {v}" for k, v in stated.items()) or "as it came"
