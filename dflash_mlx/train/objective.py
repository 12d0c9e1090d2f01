"""What is minimised: the loss of a pack as a function of the draft's parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from ..drafts.dflash import DFlashDraft
from ..drafts.dflash2 import DFlash2Draft
from ..targets.base import Target
from .dflash2 import selector_loss, selector_scores
from .forward import hidden_states
from .heads import DraftHead
from .loss import Scored, Weighting, blocks_at_once, score, tokens_per_round
from .packing import Pack

Gradients = dict[str, Any]  # as the draft's own tree of parameters


class Measured(NamedTuple):
    """What packs tell besides their gradient: sums, so that those of several packs add up.

    Attributes:
        loss: float32, the weighted cross-entropies, scaled.
        hits: float32 [b - 1], how often each row of a block was right.
        rows: float32 [b - 1], how often there was something to predict.
        round_tokens: float32, what rounds from all anchors would give.
        blocks: float32, how many anchors.
    """

    loss: mx.array
    hits: mx.array
    rows: mx.array
    round_tokens: mx.array
    blocks: mx.array

    @classmethod
    def nothing(cls, rows: int) -> Measured:
        """Of no packs, whose blocks have so many rows to predict."""
        zero, each = mx.array(0.0), mx.zeros(rows)
        return cls(zero, each, each, zero, zero)

    def __add__(self, other: Measured) -> Measured:  # type: ignore[override]
        return Measured(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of packs under a target's embedding and head, both frozen.

    Attributes:
        logits_bytes: what logits may take.
        save_memory: compute layers twice, see `forward.hidden_states`.
        dtype: what the network computes in; its parameters stay as they are.
    """

    target: Target
    weighting: Weighting
    logits_bytes: int
    save_memory: bool = False
    dtype: mx.Dtype = mx.float32

    def gradients(
        self, draft: DFlashDraft, pack: Pack, head: DraftHead, features: mx.array, scale: float
    ) -> tuple[Measured, Gradients]:
        """Measures of a pack and the gradient of its summed loss, times `scale`."""

        def run(parameters: Gradients) -> tuple[mx.array, Measured]:
            draft.update(parameters)
            if self.dtype != mx.float32:
                draft.set_dtype(self.dtype)
            return self._loss(draft, pack, head, features, scale)

        before, parameters = draft.parameters(), draft.trainable_parameters()
        try:
            (_, measured), gradients = mx.value_and_grad(run)(parameters)
        finally:
            draft.update(before)
        return measured, gradients

    def _loss(
        self, draft: DFlashDraft, pack: Pack, head: DraftHead, features: mx.array, scale: float
    ) -> tuple[mx.array, Measured]:
        labels, valid = (mx.array(a) for a in head.labels(pack))
        embedded = self.target.embed_block(mx.array(pack.blocks))
        hidden = hidden_states(draft, embedded, features, pack, save_memory=self.save_memory)
        count = draft.candidate_selector.wanted().largest if isinstance(draft, DFlash2Draft) else 0
        scored = score(
            hidden,
            labels,
            valid,
            lambda piece: draft.shape_logits(head(piece)),
            self.weighting,
            blocks=blocks_at_once(self.logits_bytes, head.size, labels.shape[1]),
            candidates=min(count, head.size),
        )
        # The gradient of the head's loss, see `loss`.
        total = (hidden.astype(mx.float32) * mx.stop_gradient(scored.slope)).sum()
        loss, hits = scored.loss, scored.hits
        if isinstance(draft, DFlash2Draft):
            extra, hits = _selected(draft, pack, head, hidden, scored)
            total, loss = total + extra, loss + mx.stop_gradient(extra)
        return scale * total, _measured(scale * loss, hits, mx.array(pack.valid))


def _selected(
    draft: DFlash2Draft, pack: Pack, head: DraftHead, hidden: mx.array, scored: Scored
) -> tuple[mx.array, mx.array]:
    """The selector's loss, and which tokens it would draft rightly."""
    assert scored.candidates is not None
    places, logits = scored.candidates
    ids = places if head.ids is None else mx.array(head.ids)[places]
    labels = mx.array(pack.labels)
    before = mx.concatenate([mx.array(pack.blocks[:, :1]), labels[:, :-1]], axis=1)
    scores = selector_scores(draft.candidate_selector, hidden, before, ids, logits)
    loss, right = selector_loss(scores, ids, labels, scored.weights)
    return loss, right & mx.array(pack.valid)


def _measured(loss: mx.array, hits: mx.array, valid: mx.array) -> Measured:
    return Measured(
        loss=loss,
        hits=hits.sum(axis=0).astype(mx.float32),
        rows=valid.sum(axis=0).astype(mx.float32),
        round_tokens=tokens_per_round(hits).sum().astype(mx.float32),
        blocks=mx.array(len(hits), mx.float32),
    )
