"""The third stage: steps of AdamW on the draft, evaluations on the way, and the best one kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map

from ..drafts.dflash import DFlashDraft
from . import state
from .arrays import number
from .distributed import Group
from .evaluate import Evaluation
from .heads import Competition
from .objective import Gradients, Measured, Objective
from .packing import Pack
from .schedule import Schedule
from .settings import FitSettings
from .state import Progress

Evaluate = Callable[[DFlashDraft], Evaluation]
Features = Callable[[Pack], mx.array]


@dataclass(frozen=True)
class StepReport:
    """What a step tells.

    Attributes:
        accuracy: per drafted place, the share of right tokens, given the true ones before it.
        tokens_per_round: of rounds from the step's anchors, as if they were decoded.
        context, drafted: tokens of the texts, and places that were predicted.
        seconds: it took.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    accuracy: tuple[float, ...]
    tokens_per_round: float
    context: int
    drafted: int
    seconds: float


Watch = Callable[[StepReport | Evaluation], None]


@dataclass(frozen=True, eq=False)
class Fit:
    """A draft in training, and everything that trains it.

    Attributes:
        draft: not prepared for decoding; its parameters are float32 and change.
        competition: which tokens compete in each pack.
        features: the target's, of a pack.
        evaluate: decodes held-out prompts; None where there are none.
        keep: called with the draft when it is the best so far.
        folder: for states and the log.
        evaluate_every, patience: see `EvaluationSettings`.
    """

    draft: DFlashDraft
    objective: Objective
    competition: Competition
    features: Features
    schedule: Schedule
    settings: FitSettings
    folder: Path
    keep: Callable[[DFlashDraft], None]
    evaluate: Evaluate | None = None
    evaluate_every: int = 0
    patience: int = 0
    group: Group | None = None

    def run(self, watch: Watch = lambda _: None) -> Progress:
        """Train from the newest state in `folder` to the end; returns where it ended."""
        group = self.group or Group()
        self.folder.mkdir(parents=True, exist_ok=True)
        optimiser = optim.AdamW(
            self.settings.learning_rate,
            betas=list(self.settings.betas),
            weight_decay=self.settings.weight_decay,
            bias_correction=True,
        )
        progress = state.restore(self.folder, self.draft, optimiser)
        if group.leads:
            state.forget_behind(self.folder, progress.step)
        while progress.step < self.schedule.steps and not self._given_up(progress):
            report = self._step(progress.step, optimiser, group)
            watch(report)
            progress = replace(progress, step=progress.step + 1)
            if group.leads:
                state.append(self.folder, {**asdict(report), "step": progress.step})
            last = progress.step == self.schedule.steps
            judged = last or (self.evaluate_every and progress.step % self.evaluate_every == 0)
            if judged:
                progress = self._evaluate(progress, group, watch)
            if group.leads and (judged or progress.step % self.settings.save_every == 0):
                state.save(self.folder, self.draft, optimiser, progress)
        return progress

    def _given_up(self, progress: Progress) -> bool:
        return self.patience > 0 and progress.waited >= self.patience

    def _step(self, step: int, optimiser: optim.Optimizer, group: Group) -> StepReport:
        began = time.perf_counter()
        packs = self.schedule.packs(step)
        measured, gradients = group.sum(self._own_share(step, packs, group))
        gradients, _ = optim.clip_grad_norm(gradients, self.settings.clip)
        rate = self.schedule.learning_rate(step)
        optimiser.learning_rate = mx.array(rate)
        optimiser.update(self.draft, gradients)
        mx.eval(self.draft.parameters(), optimiser.state, measured)
        rows = mx.maximum(measured.rows, 1)
        accuracy = cast(list[float], (measured.hits / rows).tolist())
        return StepReport(
            step=step,
            steps=self.schedule.steps,
            loss=number(measured.loss),
            learning_rate=rate,
            accuracy=tuple(round(a, 4) for a in accuracy),
            tokens_per_round=number(measured.round_tokens / measured.blocks),
            context=sum(p.tokens for p in packs),
            drafted=int(number(measured.rows.sum())),
            seconds=time.perf_counter() - began,
        )

    def _own_share(self, step: int, packs: list[Pack], group: Group) -> tuple[Measured, Gradients]:
        """Measures and gradient of the packs that are this process's, as part of the whole."""
        heads = [
            self.competition.head(p, self.schedule.random(step, i)) for i, p in enumerate(packs)
        ]
        weighting = self.objective.weighting
        total = sum(
            weighting.total(head.labels(p)[1]) for p, head in zip(packs, heads, strict=True)
        )
        scale = 1 / max(total, 1e-6)
        measured = Measured.nothing(packs[0].labels.shape[1])
        gradients: Any = tree_map(mx.zeros_like, self.draft.trainable_parameters())
        for p, head in list(zip(packs, heads, strict=True))[group.rank :: group.size]:
            more, slope = self.objective.gradients(self.draft, p, head, self.features(p), scale)
            measured, gradients = measured + more, tree_map(mx.add, gradients, slope)
            mx.eval(measured, gradients)
        return measured, gradients

    def _evaluate(self, progress: Progress, group: Group, watch: Watch) -> Progress:
        """Decode with the draft as it is, and keep it if it is the best."""
        reached = 0.0
        if group.leads:
            if self.evaluate is not None:
                found = replace(self.evaluate(self.draft), step=progress.step)
                reached = found.tokens_per_round
                state.append(self.folder, {"evaluation": found.as_dict(), "step": progress.step})
                watch(found)
            if reached > progress.best or not progress.best:
                self.keep(self.draft)
        reached = group.agree(reached)
        if reached > progress.best:
            return replace(progress, best=reached, waited=0)
        return replace(progress, waited=progress.waited + 1)
