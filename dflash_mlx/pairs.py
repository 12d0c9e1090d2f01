"""The table of pairs: which draft belongs to which target, and the names they go by.

A short name stands for a pair. Where a target has two drafts, the row that comes first goes by the
target's name, and the other by a name of its own; `--draft` picks one by its hub id.

Sources: the drafts' model cards and configs on the hub (https://huggingface.co/z-lab and
https://huggingface.co/incoai). Shapes are never taken from here: they are read from the files, and
checked against each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

EMBEDDED = "smollm2-135m"

NO_THINKING = "the draft learned answers without thinking: more is accepted with --no-think"
THINKING = "the draft learned answers with thinking: more is accepted with --think"


@dataclass(frozen=True)
class Known:
    """One row.

    Attributes:
        target: hub id of the target.
        draft: hub id of its draft; empty for the draft that ships in this package.
        family: the `model_type` in the target's config.json.
        kind: 1 for DFlash, 2 for DFlash 2.
        alias: the short name, where it is not the target's hub id without its owner.
        note: what a user should know before choosing it.
        gated: those of the two that the hub gives out only on request.
    """

    target: str
    draft: str
    family: str
    kind: int = 1
    alias: str = ""
    note: str = ""
    gated: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The short name."""
        return self.alias or self.target.split("/")[1]


PAIRS = (
    Known("HuggingFaceTB/SmolLM2-135M-Instruct", "", "llama", alias=EMBEDDED, kind=2),
    Known("Qwen/Qwen3-4B", "z-lab/Qwen3-4B-DFlash-b16", "qwen3", note=NO_THINKING),
    Known("Qwen/Qwen3-8B", "z-lab/Qwen3-8B-DFlash-b16", "qwen3", note=NO_THINKING),
    Known(
        "Qwen/Qwen3-Coder-30B-A3B-Instruct",
        "z-lab/Qwen3-Coder-30B-A3B-DFlash",
        "qwen3_moe",
    ),
    Known("Qwen/Qwen3-Coder-Next", "z-lab/Qwen3-Coder-Next-DFlash", "qwen3_next"),
    Known("Qwen/Qwen3.5-4B", "z-lab/Qwen3.5-4B-DFlash", "qwen3_5", note=THINKING),
    Known("Qwen/Qwen3.5-9B", "z-lab/Qwen3.5-9B-DFlash", "qwen3_5", note=THINKING),
    Known("Qwen/Qwen3.5-27B", "z-lab/Qwen3.5-27B-DFlash", "qwen3_5", note=THINKING),
    Known("Qwen/Qwen3.5-35B-A3B", "z-lab/Qwen3.5-35B-A3B-DFlash", "qwen3_5_moe", note=THINKING),
    Known("Qwen/Qwen3.5-122B-A10B", "z-lab/Qwen3.5-122B-A10B-DFlash", "qwen3_5_moe", note=THINKING),
    Known("Qwen/Qwen3.5-397B-A17B", "z-lab/Qwen3.5-397B-A17B-DFlash", "qwen3_5_moe", note=THINKING),
    Known("Qwen/Qwen3.6-27B", "z-lab/Qwen3.6-27B-DFlash", "qwen3_5", note=THINKING),
    Known(
        "Qwen/Qwen3.6-35B-A3B",
        "z-lab/Qwen3.6-35B-A3B-DFlash",
        "qwen3_5_moe",
        note=f"{THINKING}; there is a DFlash 2 draft, too: -m Qwen3.6-35B-A3B-DFlash2",
    ),
    Known(
        "Qwen/Qwen3.6-35B-A3B",
        "incoai/Qwen3.6-35B-A3B-DFlash2",
        "qwen3_5_moe",
        kind=2,
        alias="Qwen3.6-35B-A3B-DFlash2",
        note="the second draft of this target; with a copy of it, name this one with --draft",
    ),
    Known("Qwen/Qwen3.8-27B", "z-lab/Qwen3.8-27B-DFlash2", "qwen3_5", kind=2),
    Known("openai/gpt-oss-20b", "z-lab/gpt-oss-20b-DFlash", "gpt_oss"),
    Known("openai/gpt-oss-120b", "z-lab/gpt-oss-120b-DFlash", "gpt_oss"),
    Known(
        "meta-llama/Llama-3.1-8B-Instruct",
        "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat",
        "llama",
        gated=("target",),
    ),
    Known("google/gemma-4-12B-it", "z-lab/gemma4-12B-it-DFlash", "gemma4_unified"),
    Known("google/gemma-4-26B-A4B-it", "z-lab/gemma-4-26B-A4B-it-DFlash", "gemma4"),
    Known("google/gemma-4-31B-it", "z-lab/gemma-4-31B-it-DFlash", "gemma4", gated=("draft",)),
    Known(
        "meta-models/Muse-Glimmer-30B",
        "z-lab/Muse-Glimmer-30B-DFlash2",
        "muse_glimmer",
        kind=2,
    ),
    Known("MiniMaxAI/MiniMax-M2.5", "z-lab/MiniMax-M2.5-DFlash", "minimax_m2", gated=("draft",)),
    Known("MiniMaxAI/MiniMax-M2.7", "z-lab/MiniMax-M2.7-DFlash", "minimax_m2", gated=("draft",)),
    Known("moonshotai/Kimi-K2.5", "z-lab/Kimi-K2.5-DFlash", "kimi_k25"),
    Known("moonshotai/Kimi-K2.6", "z-lab/Kimi-K2.6-DFlash", "kimi_k25"),
    Known("zai-org/GLM-5.1-FP8", "z-lab/GLM-5.1-FP8-DFlash", "glm_moe_dsa", alias="GLM-5.1"),
)

# Ends of names that say how a copy of a target was stored, not what it is.
_STORED = re.compile(
    r"[-_.](mlx|gguf|dwq|awq|gptq|bnb|qat|optiq|mixed|ud|bf16|fp16|fp8|f16|mxfp4|mxfp8|nvfp4"
    r"|dynamic|q\d|int\d|w\d+a\d+|\d+(\.\d+)?-?(bit|bpw)|hf|gs?\d+)$",
    re.IGNORECASE,
)


def find(name: str) -> Known | None:
    """The row a target's name belongs to: a short name, a hub id or a folder.

    Case does not matter, and endings like `-4bit` or `-mlx-8bit` are looked through, so that
    quantised copies find the draft of their original.
    """
    base = name.rstrip("/").replace("\\", "/").split("/")[-1].lower()
    base = base.removeprefix("meta-")  # as Meta's own name for Llama 3.1 was at first
    while True:
        for pair in PAIRS:
            if name.lower() == pair.draft.lower():
                return None  # a draft is no target, even where a pair goes by its name
            if base in (pair.name.lower(), pair.target.split("/")[1].lower()):
                return pair
        shorter = _STORED.sub("", base)
        if shorter == base:
            return None
        base = shorter


def names() -> str:
    """The short names, for error texts."""
    return ", ".join(pair.name for pair in PAIRS)
