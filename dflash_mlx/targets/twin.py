"""Modules of mlx-lm with a part exchanged."""

from __future__ import annotations

import copy
from importlib.metadata import version
from typing import Any

from ..errors import UnsupportedError


def twin(module: Any, **parts: Any) -> Any:
    """A shallow copy of an mlx-lm module with other parts; the weights are shared.

    Raises:
        UnsupportedError: the module has no such part, in a version of mlx-lm not known here.
    """
    copied = copy.copy(module)
    for name, part in parts.items():
        if not hasattr(module, name):
            raise UnsupportedError(
                f"mlx-lm {version('mlx-lm')} builds {type(module).__name__} without {name!r}, "
                "which its target here relies on; install the version pyproject.toml names"
            )
        setattr(copied, name, part)
    return copied
