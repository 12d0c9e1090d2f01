"""Sizes of the published models, for what has not been downloaded.

Targets: parameters as mlx-lm builds the language model from the published config.json. Drafts: the
configs of the newest revisions (several were replaced in June 2026), held against the sizes of
their files. A field that no public source states is left out. Nothing is loaded by these figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from .footprint import DraftShape, Rows, TargetShape, Weights, gated_delta, heads


@dataclass(frozen=True)
class TargetSize:
    """A target that nobody has downloaded yet."""

    weights: Weights
    shape: TargetShape


@dataclass(frozen=True)
class DraftSize:
    """The same for a draft; its files are in bfloat16."""

    weights: Weights | None
    shape: DraftShape


def _plain(parameters: int, layers: int, kv_heads: int, head_dim: int = 128) -> TargetSize:
    return TargetSize(Weights(parameters), TargetShape((heads(layers, kv_heads, head_dim),)))


def _hybrid(parameters: int, layers: int, kv_heads: int, value_heads: int) -> TargetSize:
    full = layers // 4
    delta = gated_delta(layers - full, value_heads)
    return TargetSize(Weights(parameters), TargetShape((heads(full, kv_heads, 256),), delta))


def _gpt_oss(parameters: int, packed: int, layers: int) -> TargetSize:
    rows = (heads(layers // 2, 8, 64), heads(layers // 2, 8, 64, 128))
    return TargetSize(Weights(parameters, "mxfp4", packed), TargetShape(rows))


def _gemma(parameters: int, layers: int, kv_heads: int, wide_heads: int) -> TargetSize:
    full = layers // 6
    rows = (heads(full, wide_heads, 512), heads(layers - full, kv_heads, 256, 1024))
    return TargetSize(Weights(parameters), TargetShape(rows))


_MINIMAX = TargetSize(Weights(228_689_764_864, "fp8"), TargetShape((heads(62, 8, 128),)))
_KIMI = TargetSize(
    Weights(1_026_408_232_448, "int4", 1_014_686_023_680),
    TargetShape((Rows(61, 512 + 64, latent=True),)),
)
# As GLM-5, whose architecture it has.
_GLM_ROWS = (Rows(78, 512 + 64, latent=True), Rows(78, 128 + 1, latent=True))
_GLM = TargetSize(Weights(743_911_218_432, "fp8"), TargetShape(_GLM_ROWS))
_MUSE = (heads(13, 2, 128), heads(39, 2, 128, 2048))

TARGETS: dict[str, TargetSize] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _plain(134_515_008, 30, 3, 64),
    "Qwen/Qwen3-4B": _plain(4_022_468_096, 36, 8),
    "Qwen/Qwen3-8B": _plain(8_190_735_360, 36, 8),
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": _plain(30_532_122_624, 48, 4),
    "Qwen/Qwen3-Coder-Next": _hybrid(79_674_391_296, 48, 2, 32),
    "Qwen/Qwen3.5-4B": _hybrid(4_205_751_296, 32, 4, 32),
    "Qwen/Qwen3.5-9B": _hybrid(8_953_803_264, 32, 4, 32),
    "Qwen/Qwen3.5-27B": _hybrid(26_895_998_464, 64, 4, 48),
    "Qwen/Qwen3.5-35B-A3B": _hybrid(34_660_610_688, 40, 2, 32),
    "Qwen/Qwen3.5-122B-A10B": _hybrid(122_111_526_912, 48, 2, 64),
    "Qwen/Qwen3.5-397B-A17B": _hybrid(396_346_350_336, 60, 2, 64),
    "Qwen/Qwen3.6-27B": _hybrid(26_895_998_464, 64, 4, 48),
    "Qwen/Qwen3.6-35B-A3B": _hybrid(34_660_610_688, 40, 2, 32),
    "Qwen/Qwen3.8-27B": _hybrid(26_895_998_464, 64, 4, 48),
    "openai/gpt-oss-20b": _gpt_oss(20_914_757_184, 19_110_297_600, 24),
    "openai/gpt-oss-120b": _gpt_oss(116_829_156_672, 114_661_785_600, 36),
    "meta-llama/Llama-3.1-8B-Instruct": _plain(8_030_261_248, 32, 8),
    "google/gemma-4-12B-it": _gemma(11_907_350_320, 48, 8, 1),
    "google/gemma-4-26B-A4B-it": _gemma(25_233_141_790, 30, 8, 2),
    "google/gemma-4-31B-it": _gemma(30_697_345_340, 60, 16, 4),
    "meta-models/Muse-Glimmer-30B": TargetSize(Weights(27_854_780_928), TargetShape(_MUSE)),
    "MiniMaxAI/MiniMax-M2.5": _MINIMAX,
    "MiniMaxAI/MiniMax-M2.7": _MINIMAX,
    "moonshotai/Kimi-K2.5": _KIMI,
    "moonshotai/Kimi-K2.6": _KIMI,
    "zai-org/GLM-5.1-FP8": _GLM,
}


def _draft(
    parameters: int,
    layers: int,
    block: int,
    taps: int,
    kv_heads: int = 8,
    head_dim: int = 128,
    sliding: int = 0,
    window: int | None = None,
) -> DraftSize:
    full, slide = (
        heads(layers - sliding, kv_heads, head_dim),
        heads(sliding, kv_heads, head_dim, window),
    )
    rows = tuple(r for r in (full, slide) if r.layers)
    return DraftSize(Weights(parameters), DraftShape(layers, block, taps, rows))


DRAFTS: dict[str, DraftSize] = {
    "z-lab/Qwen3-4B-DFlash-b16": _draft(537_427_200, 5, 16, 5),
    "z-lab/Qwen3-8B-DFlash-b16": _draft(1_048_626_432, 5, 16, 5),
    "z-lab/Qwen3-Coder-30B-A3B-DFlash": _draft(473_995_264, 8, 16, 5, kv_heads=4),
    "z-lab/Qwen3-Coder-Next-DFlash": _draft(473_995_264, 8, 16, 5, kv_heads=4),
    "z-lab/Qwen3.5-4B-DFlash": _draft(634_425_856, 6, 16, 8, sliding=5, window=4096),
    "z-lab/Qwen3.5-9B-DFlash": _draft(1_291_904_512, 6, 16, 8, sliding=5, window=4096),
    "z-lab/Qwen3.5-27B-DFlash": _draft(2_128_682_496, 6, 16, 8, sliding=5, window=4096),
    "z-lab/Qwen3.5-35B-A3B-DFlash": _draft(385_906_176, 6, 16, 8, sliding=5, window=4096),
    "z-lab/Qwen3.5-122B-A10B-DFlash": _draft(773_893_632, 6, 16, 8, sliding=5, window=4096),
    # Five layers slide; by how much is not known, so all count as full.
    "z-lab/Qwen3.5-397B-A17B-DFlash": _draft(1_291_904_512, 6, 16, 8),
    "z-lab/Qwen3.6-27B-DFlash": _draft(1_730_213_120, 5, 16, 5, sliding=4, window=2048),
    "z-lab/Qwen3.6-35B-A3B-DFlash": _draft(385_906_176, 6, 16, 8, sliding=5, window=4096),
    "incoai/Qwen3.6-35B-A3B-DFlash2": _draft(526_251_520, 6, 8, 8, sliding=6, window=2048),
    "z-lab/Qwen3.8-27B-DFlash2": _draft(1_924_404_480, 5, 8, 5, sliding=5, window=2048),
    "z-lab/gpt-oss-20b-DFlash": _draft(784_767_104, 8, 8, 5, head_dim=64),
    "z-lab/gpt-oss-120b-DFlash": _draft(784_767_104, 8, 10, 5, head_dim=64),
    "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat": _draft(1_048_626_432, 5, 10, 5),
    "z-lab/gemma4-12B-it-DFlash": DraftSize(Weights(730_000_000), DraftShape(block=16)),
    "z-lab/gemma-4-26B-A4B-it-DFlash": _draft(429_689_088, 5, 16, 6, sliding=4, window=2048),
    "z-lab/gemma-4-31B-it-DFlash": _draft(1_535_967_488, 5, 16, 6, sliding=4, window=2048),
    "z-lab/Muse-Glimmer-30B-DFlash2": _draft(2_772_159_744, 5, 16, 5, sliding=5, window=2048),
    # Gated: known are the sizes of the files, and of one the kinds of its layers.
    "z-lab/MiniMax-M2.5-DFlash": DraftSize(Weights(1_788_000_000), DraftShape(layers=5)),
    "z-lab/MiniMax-M2.7-DFlash": DraftSize(Weights(558_000_000), DraftShape()),
    "z-lab/Kimi-K2.5-DFlash": _draft(3_479_277_056, 6, 8, 6),
    "z-lab/Kimi-K2.6-DFlash": _draft(3_479_277_056, 6, 8, 6),
    "z-lab/GLM-5.1-FP8-DFlash": DraftSize(None, DraftShape()),
}
