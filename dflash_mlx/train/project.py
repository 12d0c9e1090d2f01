"""A training as a folder: its settings, and what every stage leaves for the next.

train.toml      the settings
answers/        the target's answers to the prompts, a file a batch
draft.json      the config of the draft in training, chosen once
features/       the target's hidden states on these texts, and their scale
fit/            states and the log
draft/          the best draft so far, ready to be used
curve.html      how it came there
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from ..checkpoint import read_config
from ..config import DraftConfig
from ..drafts import draft_for
from ..drafts.dflash import DFlashDraft
from ..drafts.quantised import without_bits
from ..errors import UsageError
from ..finding import find_draft, find_target
from ..loading import Pair, load, read_draft
from ..options import Options
from ..targets import target_for
from . import features, generate
from .curve import write_curve
from .distributed import Group
from .evaluate import Evaluation, Judge, Prompt, with_draft
from .export import TYPES, export, prepared
from .fit import Fit, Watch
from .generate import Tally, encode, read_texts
from .heads import Competition
from .lora import limit
from .loss import Weighting
from .objective import Objective
from .packing import Document
from .prompts import Asked, read_prompts
from .schedule import Schedule
from .settings import Settings
from .start import (
    existing,
    free_token,
    frequent_tokens,
    initialise,
    new_config,
    random_start,
)
from .state import Progress, keep_settings

STORED = "bfloat16"  # as the published drafts are


class Project:
    """One training.

    Args:
        folder: where it stands; `train.toml` is written by whoever starts it.
        settings: as that file has them.
        pair: the target, loaded already; by default as the settings say.
    """

    def __init__(self, folder: Path, settings: Settings, pair: Pair | None = None) -> None:
        self.folder = folder
        self.settings = settings
        self._pair = pair

    @cached_property
    def pair(self) -> Pair:
        """The target as it will serve, without a draft."""
        target = self.settings.target
        return self._pair or load(
            target.model,
            speculate=False,
            bits=target.bits,
            dtype=target.dtype,
            revision=target.revision,
            kernels="off",
        )

    def check(self) -> None:
        """Find out before anything is written whether prompts and target can be had."""
        if self.prompts:
            self.pair.target.embed(mx.array([[0]]))

    @cached_property
    def prompts(self) -> tuple[list[Asked], list[Asked]]:
        """Those to train on, and those held out, in the order of their hashes."""
        data = self.settings.data
        found = sorted(read_prompts(Path(data.prompts).expanduser()), key=lambda a: a.key)
        held = {a.key for a in found if a.held_out(data.heldout)}
        training = [a for a in found if a.key not in held]
        if not training:
            raise UsageError(f"{data.prompts} holds no prompts to train on: all are held out")
        return training, [a for a in found if a.key in held]

    def generate(self) -> Iterator[Tally]:
        """The first stage; see `generate.generate`."""
        think = self.settings.target.think
        folder = self.folder / "answers"
        return generate.generate(self.pair, self.prompts[0], self.settings.data, folder, think)

    @cached_property
    def documents(self) -> Sequence[Document]:
        """The texts to train on, those with a place for a block."""
        found = [text.document for text in read_texts(self.folder / "answers")]
        found = [document for document in found if len(document.anchors)]
        if not found:
            raise UsageError(f"{self.folder} holds no answers yet: run `train generate` first")
        return found

    @cached_property
    def raw(self) -> dict[str, Any]:
        """The draft's config.json, chosen with the texts at hand and kept."""
        file = self.folder / "draft.json"
        if not file.is_file():
            temporary = file.with_name(f".{file.name}")
            temporary.write_text(json.dumps(self._choose_config(), indent=2), encoding="utf-8")
            temporary.replace(file)
        return cast(dict[str, Any], json.loads(file.read_text(encoding="utf-8")))

    @cached_property
    def config(self) -> DraftConfig:
        """The same, checked."""
        config = DraftConfig.from_dict(self.raw, str(self.folder / "draft.json"))
        return config.on_scaled_embeddings(self.pair.target.embed_scale)

    @cached_property
    def tapped(self) -> Pair:
        """The target with the draft's taps."""
        return replace(self.pair, target=target_for(self.pair.target.model, self.config.taps))

    @property
    def feature_bytes(self) -> int:
        """What the second stage writes, in all."""
        return features.stored_bytes(self.tapped.target, self.documents)

    def store_features(self) -> Iterator[tuple[int, int]]:
        """The second stage; see `features.store`."""
        return features.store(self.tapped.target, self.documents, self.folder / "features")

    @cached_property
    def scale(self) -> mx.array:
        """The usual size of the features, per dimension."""
        return features.scale_of(self._features, self.documents, self.folder / "features")

    @cached_property
    def _features(self) -> features.Features:
        folder = self.folder / "features" if self.settings.fit.store else None
        return features.Features(self.tapped.target, folder)

    def fit(self, watch: Watch = lambda _: None, group: Group | None = None) -> Progress:
        """The third stage: train, and leave the best draft in `draft/`."""
        settings, target = self.settings.fit, self.tapped.target
        folder = self.folder / "fit"
        keep_settings(folder, [asdict(self.settings.draft), asdict(settings)])
        weighting = Weighting(settings.loss, settings.gamma, settings.alpha)
        evaluation, draft = self.settings.evaluation, self.start()
        judge = self.judge(evaluation.count) if self.prompts[1] else None
        fit = Fit(
            draft=draft,
            objective=Objective(
                target,
                weighting,
                settings.logits_mb << 20,
                settings.save_memory,
                TYPES[settings.dtype],
            ),
            competition=Competition(target, draft.vocabulary, settings.negatives),
            features=partial(self._features.scaled, self.scale),
            schedule=Schedule(
                self.documents, settings, self.config.block_size, self.config.mask_token_id
            ),
            settings=settings,
            folder=folder,
            keep=self._keep,
            evaluate=partial(self._decode, judge) if judge else None,
            evaluate_every=evaluation.every,
            patience=evaluation.patience,
            group=group,
        )
        return fit.run(watch)

    def start(self) -> DFlashDraft:
        """The draft before its first step."""
        settings, fit = self.settings.draft, self.settings.fit
        if not settings.fresh:
            folder, _ = find_draft(self.settings.target.model, settings.start)
            draft = existing(folder, self.config, self._vocabulary)
            draft.fc.weight = draft.fc.weight * self.scale
            limit(draft, fit.train, fit.lora_rank, fit.seed)
            return draft
        draft = draft_for(self.config, self._vocabulary)
        if self.config.draft_vocab_size is not None:
            draft.draft_vocabulary = frequent_tokens(
                self.documents, self._known_tokens, self.config.draft_vocab_size
            )
        if settings.start == "random":
            random_start(draft, fit.seed)
        else:
            initialise(draft, self.tapped.target, self.scale, fit.seed)
        return draft

    def judge(self, count: int) -> Judge:
        """What decodes the first so many held-out prompts."""
        think = self.settings.target.think
        prompts = [
            Prompt(tuple(encode(self.pair, asked, think)), asked.kind)
            for asked in self.prompts[1][:count]
        ]
        options = Options(max_tokens=self.settings.evaluation.max_tokens)
        return Judge(prompts, self.documents, options)

    def evaluate(self, count: int, progress: Callable[[int], None]) -> Evaluation:
        """Decode held-out prompts with the draft in `draft/`."""
        if not self.prompts[1]:
            raise UsageError(f"no prompt of {self.settings.data.prompts} is held out")
        draft = read_draft(
            self.folder / "draft", self.config, dtype=self._dtype, vocabulary=self._vocabulary
        )
        return self.judge(count)(with_draft(self.tapped, draft), progress)

    def draw_curve(self) -> None:
        """Write curve.html from the log."""
        write_curve(self.folder / "fit", self.folder / "curve.html")

    def _choose_config(self) -> dict[str, Any]:
        target, draft = self.settings.target, self.settings.draft
        if not draft.fresh:
            return without_bits(read_config(find_draft(target.model, draft.start)[0]))
        known = self.pair.tokenizer
        mask = draft.mask_token
        if mask is None:
            mask = free_token(
                self.documents,
                sorted(known.get_added_vocab().values()),
                self._known_tokens,
                self.pair.target.vocab_size,
            )
        raw = read_config(find_target(target.model, target.revision, quiet=True))
        return new_config(raw, draft, mask, target.model)

    @property
    def _known_tokens(self) -> int:
        """How many ids the tokenizer knows; rows of the head behind them are padding."""
        return int(max(self.pair.tokenizer.get_vocab().values())) + 1

    @property
    def _vocabulary(self) -> int | None:
        return self._known_tokens if self.config.dflash2 else None

    @property
    def _dtype(self) -> str:
        """What drafts compute in here: never float16, see `read_draft`."""
        return "float32" if self.pair.target.dtype == mx.float32 else "bfloat16"

    def _decode(self, judge: Judge, draft: DFlashDraft) -> Evaluation:
        """Held-out prompts with the draft as it would be exported now."""
        made = prepared(draft, self.scale, TYPES[STORED], TYPES[self._dtype], self._vocabulary)
        return judge(with_draft(self.tapped, made))

    def _keep(self, draft: DFlashDraft) -> None:
        export(draft, self.scale, STORED, self.raw, self.folder / "draft")
