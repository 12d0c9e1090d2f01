"""Names lead to pairs."""

from pathlib import Path

import pytest

from dflash_mlx.pairs import PAIRS, find, names
from dflash_mlx.targets import TARGETS


@pytest.mark.parametrize(
    ("name", "draft"),
    [
        ("Qwen3-4B", "z-lab/Qwen3-4B-DFlash-b16"),
        ("qwen3-4b", "z-lab/Qwen3-4B-DFlash-b16"),
        ("Qwen/Qwen3-4B", "z-lab/Qwen3-4B-DFlash-b16"),
        ("mlx-community/Qwen3-4B-4bit", "z-lab/Qwen3-4B-DFlash-b16"),
        ("mlx-community/Qwen3-8B-MLX-8bit", "z-lab/Qwen3-8B-DFlash-b16"),
        ("Qwen/Qwen3-8B-MLX-bf16", "z-lab/Qwen3-8B-DFlash-b16"),
        ("/models/Qwen3-8B-4bit-DWQ/", "z-lab/Qwen3-8B-DFlash-b16"),
        (
            "mlx-community/Meta-Llama-3.1-8B-Instruct-4bit",
            "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat",
        ),
        ("lmstudio-community/Qwen3-Coder-30B-A3B-Instruct-MLX-4bit", None),
        ("smollm2-135m", ""),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", ""),
    ],
)
def test_names_and_copies_find_their_draft(name: str, draft: str | None) -> None:
    pair = find(name)
    assert pair is not None
    assert pair.draft == (draft if draft is not None else "z-lab/Qwen3-Coder-30B-A3B-DFlash")


@pytest.mark.parametrize("name", ["Qwen3-4B-Thinking-2507", "gpt2", "Qwen3-14B", "", "/"])
def test_other_models_find_none(name: str) -> None:
    assert find(name) is None


def test_short_names_are_unique_and_families_supported() -> None:
    short = [pair.name.lower() for pair in PAIRS]
    assert len(set(short)) == len(short)
    assert {pair.family for pair in PAIRS} <= set(TARGETS)
    assert "smollm2-135m" in names()


def test_the_readme_lists_just_these() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    listed = [line for line in readme.splitlines() if line.startswith("| `")]
    assert listed == [
        f"| `{p.name}` | {p.target} | {p.draft or 'in this package'} | {p.family} |" for p in PAIRS
    ]
