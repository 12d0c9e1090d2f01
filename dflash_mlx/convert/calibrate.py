"""How few bits a draft can do with: measured on texts of the target's own.

The source target invents requests and answers them. What the converted target would say instead
is its drift: KL(source || converted) over these answers, in nats per token. It then answers the
requests itself, greedily, and these texts are what drafts are tried on (`texts.py`).
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
from ..sampling import Sampling
from ..targets import target_for
from ..targets.base import Target
from .choose import Choice, choose
from .draft import build_draft, plan_draft
from .plan import Source
from .recipe import DraftRecipe, TargetRecipe
from .target import build_target
from .texts import Text, drift, features, log_probabilities, tokens_per_round

ASK = "Write one request that someone might send to an assistant. Answer with the request alone."
REQUEST, ANSWER = 48, 96  # tokens

Step = Callable[[str], None]


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
    tokens: int = ANSWER,
) -> Calibration:
    """Measure a pair and choose the bits of its draft.

    Args:
        recipe: of the target, whose texts are then drafted.
        plain: of the draft, without bits.
        count: requests.
        allowed: share of the tokens per round that may be lost.
        step: told of what is done next.
        tokens: of an answer, at most.

    Raises:
        UsageError: the texts are too short to say anything.
        DFlashError: as `load`.
    """
    step("texts of the source")
    pair = load(str(target.path), speculate=False, quiet=True)
    prompts = [_request(pair, seed) for seed in range(count)]
    texts = [answer(pair, prompt, tokens) for prompt in prompts]
    before = [log_probabilities(pair.target, text) for text in texts] if recipe.quantises else []
    raw = read_config(target.path)
    taps = build_draft(draft, plain, raw).network.config.taps
    step("texts of the converted target")
    pair = replace(pair, target=converted_target(target, recipe, taps))
    after = (log_probabilities(pair.target, text) for text in texts)
    drifted = drift(before, list(after)) if before else 0.0
    texts = [answer(pair, prompt, tokens) for prompt in prompts]
    read = [(text, features(pair.target, text)) for text in texts]
    if sum(len(text.ids) - text.prompt for text, _ in read) < 4 * count:
        raise UsageError("the target's answers are too short to calibrate on; use --draft-bits")

    def measure(how: DraftRecipe) -> float:
        step(f"draft: {_name(how)}")
        return tokens_per_round(pair.target, converted_draft(draft, how, raw, pair), read)

    def size(how: DraftRecipe) -> int:
        return plan_draft(draft, how, raw).size

    found = choose(plain, measure, size, allowed)
    tried = sum(len(text.ids) - text.prompt for text in texts)
    return Calibration(drifted, count, tried, found)


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


def answer(pair: Pair, prompt: Sequence[int], tokens: int = ANSWER) -> Text:
    """The target's own greedy answer to the ids of a request."""
    return Text((*prompt, *_text(pair, prompt, Options(tokens, speculate=False))), len(prompt))


def _text(pair: Pair, prompt: Sequence[int], options: Options) -> list[int]:
    return [token for round_ in rounds(pair, prompt, options) for token in round_.tokens]


def converted_target(source: Source, recipe: TargetRecipe, taps: Sequence[int]) -> Target:
    """The target as it will be stored, with the draft's taps."""
    lm, _ = build_target(source, recipe)
    stored = next(v for _, v in _floating(lm))
    cast_floating(lm, compute_dtype(stored.dtype))
    _widen(lm, recipe.mode)
    mx.eval(lm.parameters())
    return target_for(lm, taps)


def converted_draft(
    source: Source, recipe: DraftRecipe, target: dict[str, Any], pair: Pair
) -> DFlashDraft:
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
