"""Decoding with kernels: the same ids as without, for every family, by the emulator.

The reduced models get head sizes and widths that the kernels take, and are quantised where the
sizes allow it, so that products of both kinds run.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import make_prompt_cache

from dflash_mlx.generation import rounds
from dflash_mlx.kernels.chip import Chip
from dflash_mlx.kernels.choice import Kernels
from dflash_mlx.loading import Pair
from dflash_mlx.options import Options
from dflash_mlx.targets import target_for
from tests.metal_cpu import Options as Emulation

from .families import FAMILIES, ScriptedDraft, draft_config
from .reduced import CONFIGS, MODULES, VOCAB, make

WIDE = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
COUNT = 14
BLOCK = 6


def widened(config: dict[str, Any]) -> dict[str, Any]:
    """The config with a head size of 64."""
    config = {k: widened(v) if k == "text_config" else v for k, v in config.items()}
    if "hidden_size" in config:
        latent = "kv_lora_rank" in config
        config |= {"hidden_size": 128} if latent else WIDE
    if "head_dim" in config:
        config["head_dim"] = 64
    return config


@cache
def model_of(family: str, quantised: bool) -> Any:
    config = deepcopy(CONFIGS[family])
    model = make(widened(config), MODULES.get(family, config["model_type"]))
    if quantised:
        nn.quantize(model, 32, 4, class_predicate=_takes)
    mx.eval(model.parameters())
    return model


def _takes(_: str, module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


@cache
def truth(family: str, quantised: bool) -> tuple[list[int], list[int]]:
    """A prompt and how mlx-lm's own model and cache go on, without near ties."""
    model = model_of(family, quantised)
    for seed in range(6):
        prompt = mx.random.randint(0, VOCAB - 1, (7,), key=mx.random.key(seed)).tolist()
        known, ids, margin = make_prompt_cache(model), [], 1.0
        logits = model(mx.array([prompt]), cache=known)
        while len(ids) < COUNT:
            second, first = mx.sort(logits[0, -1])[-2:].tolist()
            margin = min(margin, first - second)
            ids.append(int(mx.argmax(logits[0, -1])))
            logits = model(mx.array([ids[-1:]]), cache=known)
        if margin > 1e-4:
            return prompt, ids
    raise AssertionError(f"{family} ties everywhere")


def draft_of(prompt: Sequence[int], ids: Sequence[int], **changes: Any) -> ScriptedDraft:
    config = draft_config(
        hidden_size=128, head_dim=64, num_heads=2, num_kv_heads=1, block_size=BLOCK, **changes
    )
    return ScriptedDraft(config, [*prompt, *ids], lambda start: start % BLOCK)


def decode(family: str, quantised: bool, kernels: Kernels, **options: Any) -> list[int]:
    prompt, ids = truth(family, quantised)
    draft = draft_of(prompt, ids)
    pair = Pair(
        target=target_for(model_of(family, quantised), draft.config.taps),
        draft=draft,
        tokenizer=None,
        eos_ids=frozenset(),
        max_context=4096,
        name=family,
        draft_name="scripted",
        kernels=kernels,
    )
    done = rounds(pair, prompt, Options(max_tokens=COUNT, **options))
    return [token for round_ in done for token in round_.tokens]


@pytest.mark.parametrize("quantised", [True, False], ids=["quantised", "dense"])
@pytest.mark.parametrize("family", FAMILIES)
def test_references_decode_the_same(family: str, quantised: bool) -> None:
    assert decode(family, quantised, Kernels("on", None)) == truth(family, quantised)[1]


@pytest.mark.parametrize("quantised", [True, False], ids=["quantised", "dense"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_decode_the_same(family: str, quantised: bool, emulate) -> None:
    emulate(Emulation())
    kernels = Kernels("on", Chip(16))
    assert decode(family, quantised, kernels) == truth(family, quantised)[1]
    print(family, kernels.proven, kernels.refused)
    assert not kernels.refused
