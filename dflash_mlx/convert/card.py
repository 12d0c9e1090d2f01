"""The model card: what a folder holds and how it was made.

Nothing in it depends on when or where it was made, so that the same conversion gives the same file.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..machine import versions
from .plan import Plan

MIB = 2**20


def model_card(plans: Sequence[Plan], name: str) -> bytes:
    """README.md for a target, a draft, or both as a pair.

    Args:
        plans: of what lies in the folder.
        name: of the folder.
    """
    lines = ["---", "library_name: mlx", "pipeline_tag: text-generation"]
    lines += ["base_model:", *(f"- {plan.source.name}" for plan in plans if _on_hub(plan))]
    lines = [line for line in lines if line != "base_model:" or any(map(_on_hub, plans))]
    lines += ["tags:", "- mlx", "- dflash", "- speculative-decoding", "---", "", f"# {name}", ""]
    lines += [_what(plans), ""]
    for plan in plans:
        lines += [f"## {plan.part.capitalize()}", "", *_facts(plan), ""]
    lines += ["## Use", "", "```sh", _command(plans, name), "```", ""]
    lines += [f"Made by dflash-mlx convert ({_versions()}). The originals' licences apply."]
    return ("\n".join(lines) + "\n").encode()


def _on_hub(plan: Plan) -> bool:
    return plan.source.revision is not None


def _what(plans: Sequence[Plan]) -> str:
    if len(plans) == 2:
        target, draft = (f"`{plan.source.name}`" for plan in plans)
        return (
            f"{target} and {draft}, a DFlash draft for it, for speculative decoding with MLX. The "
            "text is the target's own, token for token; the draft makes it come sooner."
        )
    plan = plans[0]
    if plan.part == "draft":
        return (
            f"`{plan.source.name}`, a DFlash draft, in MLX's safetensors. It is no model by "
            "itself: it proposes blocks of tokens from the hidden states of its target."
        )
    return f"`{plan.source.name}` for MLX."


def _facts(plan: Plan) -> list[str]:
    origin = plan.source.name + (f" at {plan.source.revision}" if plan.source.revision else "")
    lines = [f"- from {origin}", *(f"- {fact}" for fact in plan.facts)]
    if plan.part == "draft":
        inner = plan.config["dflash_config"]
        lines.append(f"- taps {', '.join(map(str, inner['target_layer_ids']))} of the target")
    return [*lines, f"- {plan.size / MIB:.1f} MiB"]


def _command(plans: Sequence[Plan], name: str) -> str:
    if plans[0].part == "target":
        return f"dflash-mlx chat -m ./{name}"
    return f"dflash-mlx chat -m TARGET --draft ./{name}"


def _versions() -> str:
    found = versions()
    return ", ".join(f"{n} {found[n]}" for n in ("dflash-mlx", "mlx", "mlx-lm"))
