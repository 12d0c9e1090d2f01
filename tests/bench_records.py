"""Answers made by hand."""

from typing import Any

from dflash_mlx.bench.records import Answer, Drafting, Turn


def turn(tokens: int = 11, decode_s: float = 1.0, **more: Any) -> Turn:
    """A turn of so many different tokens."""
    fields: dict[str, Any] = {
        "prompt_tokens": 20,
        "cached_tokens": 0,
        "ids": tuple(range(tokens)),
        "tokens": tokens,
        "rounds": (),
        "ttft_s": 0.5,
        "decode_s": decode_s,
        "peak_bytes": 1000,
        "text": "42",
        "thinking": "",
        "finish_reason": "stop",
    }
    return Turn(**(fields | more))


def answer(problem: str, arm: str, *turns: Turn, **more: Any) -> Answer:
    """One conversation of a pair on a set."""
    fields: dict[str, Any] = {"pair": "tiny", "dataset": "sums", "repeat": 0}
    return Answer(problem=problem, arm=arm, turns=turns or (turn(),), **(fields | more))


def rounds(*accepted: int, drafted: int = 3) -> tuple[Drafting, ...]:
    """Whole rounds."""
    return tuple(Drafting(drafted, n, n + 1) for n in accepted)
