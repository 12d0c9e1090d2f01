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
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache

from dflash_mlx.config import DFlash2
from dflash_mlx.drafts import draft_for
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.drafts.shortlist import Proposal
from dflash_mlx.generation import rounds
from dflash_mlx.kernels.chip import Chip
from dflash_mlx.kernels.choice import Kernels
from dflash_mlx.kernels.linear import FewRowsSwiGLU
from dflash_mlx.loading import Pair, load
from dflash_mlx.options import Options
from dflash_mlx.sampling import Sampling
from dflash_mlx.targets import target_for
from dflash_mlx.trial import Trial
from tests.metal_cpu import Options as Emulation

from .families import FAMILIES, ScriptedDraft, draft_config, make_pair, prompt_of
from .reduced import CONFIGS, MODULES, VOCAB, make

WIDE = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
COUNT = 23
CHIP = Chip(16)
BLOCK = 6


def widened(config: dict[str, Any]) -> dict[str, Any]:
    """The config with a head size of 64, and sizes that can be quantised in groups of 32."""
    config = {k: widened(v) if k == "text_config" else v for k, v in config.items()}
    if config.get("intermediate_size") == 80:
        config["intermediate_size"] = 96
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


def wrong(start: Any) -> Any:
    """Where a block is wrong; from position 7 on every acceptance occurs within 22 tokens."""
    return (start + start // 8) % BLOCK


def draft_of(prompt: Sequence[int], ids: Sequence[int]) -> ScriptedDraft:
    config = draft_config(
        hidden_size=128, head_dim=64, num_heads=2, num_kv_heads=1, block_size=BLOCK
    )
    return ScriptedDraft(config, [*prompt, *ids], wrong)


def pair_of(family: str, quantised: bool, kernels: Kernels) -> Pair:
    draft = draft_of(*truth(family, quantised))
    return Pair(
        target=target_for(model_of(family, quantised), draft.config.taps),
        draft=draft,
        tokenizer=None,
        eos_ids=frozenset(),
        max_context=4096,
        name=family,
        draft_name="scripted",
        kernels=kernels,
    )


def decode(pair: Pair, prompt: Sequence[int], **options: Any) -> list[int]:
    done = rounds(pair, prompt, Options(**{"max_tokens": COUNT, **options}))
    return [token for round_ in done for token in round_.tokens]


def expected(family: str, quantised: bool) -> set[str]:
    """Which kernels take part; the draft is dense and attends in any case."""
    names = {"block_attention", "matmul_small", "head_topk"}
    if quantised:
        names.add("quantized_matmul_small")
    if family in ("qwen3_next", "qwen3_5", "qwen3_5-tied", "qwen3_5_moe"):
        names.add("gated_delta_round")
    if quantised and family in GATHERED:
        names.add("gather_quantized_matmul_small")
    return names


# Mixtures of SwiGLU experts; those of gpt-oss and Gemma are of another kind.
GATHERED = (
    *("qwen3_moe", "qwen3_next", "qwen3_5_moe", "deepseek_v3", "kimi_k25", "minimax_m2"),
    *("glm4_moe_lite", "glm_moe_dsa", "glm4_moe"),
)
KINDS = pytest.mark.parametrize("quantised", [True, False], ids=["quantised", "dense"])
EVERY = pytest.mark.parametrize("family", FAMILIES)


@KINDS
@EVERY
def test_definitions_decode_the_same(family: str, quantised: bool) -> None:
    kernels = Kernels("on", None)
    prompt, ids = truth(family, quantised)
    assert decode(pair_of(family, quantised, kernels), prompt) == ids
    assert set(kernels.proven) == expected(family, quantised)


@KINDS
@EVERY
def test_kernels_decode_the_same(family: str, quantised: bool, emulate: Any) -> None:
    emulate(Emulation())
    kernels = Kernels("on", CHIP)
    prompt, ids = truth(family, quantised)
    assert decode(pair_of(family, quantised, kernels), prompt) == ids
    assert set(kernels.proven) == expected(family, quantised)
    assert not kernels.refused


@pytest.mark.parametrize(
    ("family", "fused"), [("llama", True), ("qwen3_5", True), ("glm4", False), ("gemma4", False)]
)
def test_a_swiglu_is_recognised_by_what_it_does(family: str, fused: bool) -> None:
    """Not so GELU layers, nor those with gate and up in one weight."""
    target = target_for(model_of(family, True)).with_kernels(Kernels("on", None))
    assert isinstance(target.layers[0].mlp, FewRowsSwiGLU) == fused


@pytest.mark.parametrize("family", ["llama", "qwen3_5", "qwen3_next", "glm_moe_dsa"])
def test_compiled_rounds_decode_the_same(family: str) -> None:
    pair = pair_of(family, True, Kernels("on", None))
    prompt, ids = truth(family, True)
    assert decode(pair, prompt, compiled=True) == ids


@pytest.mark.parametrize("family", ["llama-sliding", "qwen3_5", "qwen3_next", "deepseek_v3"])
def test_rounds_with_and_without_kernels_take_turns(family: str, emulate: Any) -> None:
    """Both leave caches that the other goes on from."""
    emulate(Emulation())
    pair = pair_of(family, True, Kernels("auto", CHIP))
    ways: list[bool] = []
    pair.trials[BLOCK, Options().sampling, None] = InTurn(ways)
    prompt, ids = truth(family, True)
    assert decode(pair, prompt) == ids
    assert len(set(ways)) == 2
    assert "quantized_matmul_small" in pair.kernels.proven


class InTurn(Trial):
    """Never ends."""

    def __init__(self, ways: list[bool]) -> None:
        super().__init__()
        self._ways = ways

    def choose(self) -> bool:
        return len(self._ways) % 2 == 0

    def record(self, kernels: bool, seconds: float) -> bool:
        self._ways.append(kernels)
        return False


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_dflash2_drafts_the_same(temperature: float, emulate: Any) -> None:
    """A draft's choice is its own, so drafted tokens are compared, and q with them."""
    config = draft_config(
        hidden_size=128,
        head_dim=64,
        num_heads=2,
        num_kv_heads=1,
        block_size=BLOCK,
        dflash2=DFlash2(2, 16, 32, 8),
    )
    mx.random.seed(5)
    draft = draft_for(config)
    draft.update(tree_map(lambda w: w + 0.1 * mx.random.normal(w.shape), draft.parameters()))
    plain = proposal(draft.prepare(), temperature)
    emulate(Emulation())
    kernels = Kernels("on", CHIP)
    found = proposal(draft.with_kernels(kernels), temperature)
    assert mx.array_equal(found[0], plain[0])
    assert {"dynamic_causal_conv", "candidate_path", "block_attention"} <= set(kernels.proven)
    if temperature:
        assert mx.allclose(mx.exp(found[1]), mx.exp(plain[1]), atol=1e-4)


def test_dflash2_rounds_are_the_same() -> None:
    """Candidates come from the head's largest logits instead of all of them."""
    found = []
    for kernels in (Kernels("off"), Kernels("on", None)):
        mx.random.seed(5)
        draft = draft_for(draft_config(dflash2=DFlash2(2, 16, 32, 8)), VOCAB - 3)
        draft.update(tree_map(lambda w: w + 0.1 * mx.random.normal(w.shape), draft.parameters()))
        pair = make_pair("qwen3", draft.prepare())
        pair.kernels = kernels
        found.append(list(rounds(pair, prompt_of(9), Options(max_tokens=30))))
    assert found[0] == found[1]
    assert "head_topk" in pair.kernels.proven


def proposal(draft: DFlashDraft, temperature: float) -> Proposal:
    keys = mx.random.split(mx.random.key(3), 4)
    cache_ = draft.new_cache()
    features = mx.random.normal((1, 9, 2 * 128), key=keys[0])
    state = draft.extend(features, 0, cache_.begin(0, 9 + BLOCK, False))
    block = mx.random.normal((1, BLOCK, 128), key=keys[1])
    hidden, _ = draft.forward(block, 9, state)
    table = mx.random.normal((VOCAB, 128), key=keys[2])
    logits = draft.shape_logits(hidden @ table.T)[0, 1:]
    sampling = Sampling(temperature=temperature)
    return draft.propose(hidden[0, 1:], logits, mx.array([3], mx.int32), sampling, keys[3])


@pytest.mark.slow
def test_the_embedded_pair_decodes_the_same(emulate: Any) -> None:
    pair = load(quiet=True)
    prompt = pair.encode("The capital of France is")
    wanted = decode(pair, prompt, max_tokens=8)
    emulate(Emulation())
    pair.kernels = Kernels("on", CHIP)
    assert decode(pair, prompt, max_tokens=8) == wanted
    assert pair.kernels.proven == ["block_attention", "candidate_path", "head_topk", "matmul_small"]
