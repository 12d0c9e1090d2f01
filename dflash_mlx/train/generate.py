"""The first stage: the target answers the prompts, in the mode and with the sampling of later use.

What other models or people answered would teach the draft to guess what this target never says.
A batch of answers is a file; a run that was killed writes the files that are missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..conversation import Conversation
from ..loading import Pair
from ..sampling import Sampling
from .batch import Answer, answer
from .packing import Document
from .prompts import Asked
from .settings import DataSettings


@dataclass(frozen=True)
class Text:
    """A prompt with its answer, and how that ended: "stop", "length" or "loop"."""

    document: Document
    reason: str


@dataclass(frozen=True)
class Tally:
    """How far the stage is.

    Attributes:
        done, total: prompts answered, and prompts.
        tokens: of answers written in this run.
        reasons: how many of them ended how.
    """

    done: int
    total: int
    tokens: int
    reasons: Counter[str]


def encode(pair: Pair, asked: Asked, think: bool | None) -> list[int]:
    """A prompt as the model gets it, by its chat template where it has one."""
    if not pair.tokenizer.has_chat_template:
        return pair.encode("\n".join(content for _, content in asked.messages))
    conversation = Conversation(pair, think=think)
    conversation.messages = [{"role": r, "content": c} for r, c in asked.messages]
    return conversation.prompt_ids


def generate(
    pair: Pair,
    asked: Sequence[Asked],
    settings: DataSettings,
    folder: Path,
    think: bool | None = None,
) -> Iterator[Tally]:
    """Answer the prompts that `folder` has no answers to; yields behind every batch.

    Args:
        pair: the target; a draft plays no part.
        asked: prompts to train on.
        settings: lengths, sampling, batch.
        folder: gets a file a batch.
        think: whether a model that can think should.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {text.document.key for text in _stored(folder)}
    missing = [(a.key, encode(pair, a, think)) for a in asked if a.key not in known]
    # What fits no context is counted as done: no later run would answer it either.
    missing = [(k, ids) for k, ids in missing if len(ids) < pair.max_context]
    sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, settings.min_p)
    done, tokens, reasons = len(asked) - len(missing), 0, Counter[str]()
    for batch in _batches(missing, settings.batch if pair.target.batches else 1):
        keys, prompts = zip(*batch, strict=True)
        room = pair.max_context - max(len(p) for p in prompts)
        # A batch's seed is its own, so that it comes out the same in whichever run.
        seed = (settings.seed + int(keys[0], 16)) % 2**32
        answers = answer(
            pair.target, prompts, min(settings.max_tokens, room), sampling, pair.eos_ids, seed
        )
        _write(folder / f"answers-{keys[0]}.npz", keys, prompts, answers)
        done, tokens = done + len(batch), tokens + sum(len(a.ids) for a in answers)
        reasons.update(a.reason for a in answers)
        yield Tally(done, len(asked), tokens, reasons)


def read_texts(folder: Path) -> list[Text]:
    """All answers in a folder, always in the same order; those that say the same only once."""
    texts: dict[bytes, Text] = {}
    for text in _stored(folder):
        texts.setdefault(text.document.ids[text.document.answer :].tobytes(), text)
    return list(texts.values())


def _batches(
    prompts: list[tuple[str, list[int]]], size: int
) -> Iterator[Sequence[tuple[str, list[int]]]]:
    """Prompts of similar length together; batches in the order of a hash, a mixture at any time."""
    ordered = sorted(prompts, key=lambda p: (len(p[1]), p[0]))
    batches = [ordered[first : first + size] for first in range(0, len(ordered), size)]
    return iter(sorted(batches, key=lambda batch: batch[0][0]))


def _write(
    file: Path, keys: Sequence[str], prompts: Sequence[list[int]], answers: Sequence[Answer]
) -> None:
    texts = [[*p, *a.ids] for p, a in zip(prompts, answers, strict=True)]
    temporary = file.with_name(f".{file.name}")
    np.savez_compressed(
        temporary,
        tokens=np.concatenate([np.array(t, np.int32) for t in texts]),
        ends=np.cumsum([len(t) for t in texts]),
        answer=np.array([len(p) for p in prompts], np.int32),
        key=np.array(keys),
        reason=np.array([a.reason for a in answers]),
    )
    temporary.replace(file)


def _stored(folder: Path) -> Iterator[Text]:
    for file in sorted(folder.glob("answers-*.npz")):
        yield from _read(file)


def _read(file: Path) -> Iterator[Text]:
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    texts = np.split(arrays["tokens"], arrays["ends"][:-1])
    for ids, start, key, reason in zip(
        texts, arrays["answer"], arrays["key"], arrays["reason"], strict=True
    ):
        yield Text(Document(ids, int(start), str(key)), str(reason))
