"""The table of pairs: which draft belongs to which target, and the names they go by.

Sources: the drafts' model cards and configs on the hub (https://huggingface.co/z-lab). Shapes are
never taken from here: they are read from the files, and checked against each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

EMBEDDED = "smollm2-135m"


@dataclass(frozen=True)
class Known:
    """One row.

    Attributes:
        target: hub id of the target.
        draft: hub id of its draft; empty for the draft that ships in this package.
        family: the target's `model_type`.
    """

    target: str
    draft: str
    family: str

    @property
    def name(self) -> str:
        """The short name: the hub id without its owner."""
        return EMBEDDED if not self.draft else self.target.split("/")[1]


PAIRS = (
    Known("HuggingFaceTB/SmolLM2-135M-Instruct", "", "llama"),
    Known("Qwen/Qwen3-4B", "z-lab/Qwen3-4B-DFlash-b16", "qwen3"),
    Known("Qwen/Qwen3-8B", "z-lab/Qwen3-8B-DFlash-b16", "qwen3"),
    Known(
        "Qwen/Qwen3-Coder-30B-A3B-Instruct",
        "z-lab/Qwen3-Coder-30B-A3B-DFlash",
        "qwen3_moe",
    ),
    Known(
        "meta-llama/Llama-3.1-8B-Instruct",
        "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat",
        "llama",
    ),
)

# Ends of names that say how a copy of a target was stored, not what it is.
_STORED = re.compile(
    r"[-_.](mlx|gguf|dwq|awq|gptq|bf16|fp16|fp8|f16|mxfp4|mxfp8|nvfp4|q\d|int\d|\d+-?bit|hf|g\d+)$",
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
            if base in (pair.name.lower(), pair.target.split("/")[1].lower()):
                return pair
        shorter = _STORED.sub("", base)
        if shorter == base:
            return None
        base = shorter


def names() -> str:
    """The short names, for error texts."""
    return ", ".join(pair.name for pair in PAIRS)
