"""The draft networks: block-diffusion models that read the target's hidden states."""

from __future__ import annotations

from ..config import DraftConfig
from .dflash import DFlashDraft
from .dflash2 import DFlash2Draft


def draft_for(config: DraftConfig, vocabulary: int | None = None) -> DFlashDraft:
    """The network that `config` describes, its weights not read yet.

    Args:
        vocabulary: how many ids stand for tokens, where the head has more rows than that.
    """
    if config.dflash2 is not None:
        return DFlash2Draft(config, vocabulary)
    return DFlashDraft(config)
