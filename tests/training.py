"""What tests of training share: texts of a tiny random target, and a draft in training on them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from dflash_mlx.config import DraftConfig
from dflash_mlx.drafts import draft_for
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.loading import Pair
from dflash_mlx.options import Options
from dflash_mlx.targets import target_for
from dflash_mlx.train.evaluate import Judge, Prompt, with_draft
from dflash_mlx.train.export import prepared
from dflash_mlx.train.features import Features, measure
from dflash_mlx.train.fit import Fit
from dflash_mlx.train.heads import Competition
from dflash_mlx.train.lora import limit
from dflash_mlx.train.loss import Weighting
from dflash_mlx.train.objective import Objective
from dflash_mlx.train.packing import Document
from dflash_mlx.train.schedule import Schedule
from dflash_mlx.train.settings import FitSettings
from dflash_mlx.train.start import initialise

from .families import draft_config, language_model, make_pair, plain_ids, prompt_of

FAMILY = "llama"
PROMPT, LENGTH = 6, 32


@cache
def texts(count: int) -> tuple[Document, ...]:
    """Prompts with the target's greedy answers."""
    made = []
    for seed in range(count):
        prompt = prompt_of(PROMPT, seed)
        ids = prompt + plain_ids(FAMILY, prompt, LENGTH)
        made.append(Document(np.array(ids, np.int32), PROMPT, str(seed)))
    return tuple(made)


def plain_pair(config: DraftConfig) -> Pair:
    """The target with the draft's taps, and no draft."""
    pair = make_pair(FAMILY, None)
    return replace(pair, target=target_for(language_model(FAMILY), config.taps))


class Training:
    """A draft over the tiny target, with settings that learn its texts by heart."""

    def __init__(
        self, folder: Path, count: int = 8, config: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        fields = {"anchors": 64, "pack_tokens": 512, "packs": 1, "learning_rate": 3e-3}
        self.settings = FitSettings(**(fields | settings))
        self.config = draft_config(**(config or {}))
        self.folder = folder
        self.pair = plain_pair(self.config)
        self.documents = texts(count)
        self.scale = measure(Features(self.pair.target), self.documents)
        self.draft = draft_for(self.config)
        initialise(self.draft, self.pair.target, self.scale, 0)
        limit(self.draft, self.settings.train, self.settings.lora_rank, seed=0)

    def fit(self, keep: Callable[[DFlashDraft], None] = lambda _: None, **more: Any) -> Fit:
        """What trains it."""
        target = self.pair.target
        weighting = Weighting(self.settings.loss, self.settings.gamma, self.settings.alpha)
        return Fit(
            draft=self.draft,
            objective=Objective(target, weighting, 1 << 28),
            competition=Competition(target, negatives=self.settings.negatives),
            features=partial(Features(target).scaled, self.scale),
            schedule=Schedule(
                self.documents, self.settings, self.config.block_size, self.config.mask_token_id
            ),
            settings=self.settings,
            folder=self.folder,
            keep=keep,
            **more,
        )

    def judged(self, draft: DFlashDraft | None = None) -> float:
        """Tokens per round on its own texts, by decoding."""
        prompts = [Prompt(tuple(d.ids[:PROMPT].tolist())) for d in self.documents]
        judge = Judge(prompts, self.documents, Options(max_tokens=LENGTH))
        made = draft or prepared(self.draft, self.scale, mx.float32, mx.float32, None)
        return judge(with_draft(self.pair, made)).tokens_per_round
