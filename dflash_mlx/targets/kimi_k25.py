"""Kimi-K2.5 and later: DeepSeek-V3's layers inside a model that also sees."""

from typing import Any

from .mla import MlaTarget


class KimiK25Target(MlaTarget):
    """`model_type: kimi_k25`."""

    @property
    def language_model(self) -> Any:
        """The text part."""
        return self.model.language_model
