"""Names lead to pairs."""

from pathlib import Path

import pytest

from dflash_mlx.catalog import DRAFTS
from dflash_mlx.catalog import TARGETS as SIZES
from dflash_mlx.checkpoint import read_config
from dflash_mlx.config import DFLASH_2
from dflash_mlx.embedded import embedded_draft
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
        ("Qwen/Qwen3-8B-FP8", "z-lab/Qwen3-8B-DFlash-b16"),
        ("x/Qwen3-8B-4.5bit", "z-lab/Qwen3-8B-DFlash-b16"),
        ("x/Qwen3-8B-mlx-6Bit-gs32", "z-lab/Qwen3-8B-DFlash-b16"),
        (
            "mlx-community/Meta-Llama-3.1-8B-Instruct-4bit",
            "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat",
        ),
        (
            "lmstudio-community/Qwen3-Coder-30B-A3B-Instruct-MLX-4bit",
            "z-lab/Qwen3-Coder-30B-A3B-DFlash",
        ),
        ("mlx-community/Qwen3-Coder-Next-8bit", "z-lab/Qwen3-Coder-Next-DFlash"),
        ("unsloth/Qwen3.5-397B-A17B-UD-MLX-4bit", "z-lab/Qwen3.5-397B-A17B-DFlash"),
        ("Qwen/Qwen3.6-35B-A3B", "z-lab/Qwen3.6-35B-A3B-DFlash"),
        ("mlx-community/Qwen3.6-35B-A3B-nvfp4", "z-lab/Qwen3.6-35B-A3B-DFlash"),
        ("qwen3.6-35b-a3b-dflash2", "incoai/Qwen3.6-35B-A3B-DFlash2"),
        ("Qwen3.8-27B", "z-lab/Qwen3.8-27B-DFlash2"),
        ("mlx-community/gpt-oss-20b-MXFP4-Q8", "z-lab/gpt-oss-20b-DFlash"),
        ("mlx-community/gemma-4-12b-it-qat-4bit", "z-lab/gemma4-12B-it-DFlash"),
        ("gemma-4-31B-it", "z-lab/gemma-4-31B-it-DFlash"),
        ("mlx-community/MiniMax-M2.5-6bit", "z-lab/MiniMax-M2.5-DFlash"),
        ("moonshotai/Kimi-K2.6", "z-lab/Kimi-K2.6-DFlash"),
        ("GLM-5.1", "z-lab/GLM-5.1-FP8-DFlash"),
        ("zai-org/GLM-5.1", "z-lab/GLM-5.1-FP8-DFlash"),
        ("zai-org/GLM-5.1-FP8", "z-lab/GLM-5.1-FP8-DFlash"),
        ("mlx-community/Muse-Glimmer-30B-4bit", "z-lab/Muse-Glimmer-30B-DFlash2"),
        ("smollm2-135m", ""),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", ""),
    ],
)
def test_names_and_copies_find_their_draft(name: str, draft: str) -> None:
    pair = find(name)
    assert pair is not None
    assert pair.draft == draft


@pytest.mark.parametrize(
    "name",
    [
        "Qwen3-4B-Thinking-2507",
        "gpt2",
        "Qwen3-14B",
        "google/gemma-4-31B",  # not the -it one
        "Qwen3.5-27B-abliterated",
        "incoai/Qwen3.6-35B-A3B-DFlash2",  # a draft is no target
        "z-lab/Qwen3.8-27B-DFlash2",
        "",
        "/",
    ],
)
def test_other_models_find_none(name: str) -> None:
    assert find(name) is None


def test_short_names_are_unique_and_lead_to_their_rows() -> None:
    short = [pair.name.lower() for pair in PAIRS]
    assert len(set(short)) == len(short)
    assert [find(name) for name in short] == list(PAIRS)
    assert "smollm2-135m" in names()


def test_families_are_supported() -> None:
    assert {pair.family for pair in PAIRS} <= set(TARGETS)


def test_kinds_follow_the_drafts_names() -> None:
    published = [p for p in PAIRS if p.draft]
    assert {p.draft for p in published if p.kind == 2} == {
        p.draft for p in published if p.draft.endswith("DFlash2")
    }
    own = read_config(embedded_draft())["architectures"]
    assert [p.kind for p in PAIRS if not p.draft] == [2] and own == [DFLASH_2]


def test_every_model_has_its_sizes_and_no_other() -> None:
    assert {p.target for p in PAIRS} == set(SIZES)
    assert {p.draft for p in PAIRS if p.draft} == set(DRAFTS)


def test_a_second_draft_is_told_of() -> None:
    first, second = (p for p in PAIRS if p.target == "Qwen/Qwen3.6-35B-A3B")
    assert f"-m {second.name}" in first.note


def test_the_readme_lists_just_these() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    listed = [line for line in readme.splitlines() if line.startswith("| `")]
    assert listed == [
        f"| `{p.name}` | {p.target} | {p.draft or 'in this package'} | {p.family} |" for p in PAIRS
    ]
