"""DFlash speculative decoding, native to MLX.

`load` a pair, then `stream_generate` or `generate`. The names are resolved on first use: the
command line imports this package for its `--help`, which must not wait for MLX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conversation import Conversation, Piece
    from .errors import DFlashError
    from .generation import Response, generate, rounds, stream_generate
    from .guide import Guide
    from .loading import Pair, load
    from .logprobs import TokenLogprob
    from .options import Options
    from .sampling import Sampling
    from .session import Session
    from .stats import Round, Stats

__version__ = "0.1.0"

_HOME = {
    "Conversation": "conversation",
    "DFlashError": "errors",
    "Guide": "guide",
    "Options": "options",
    "Pair": "loading",
    "Piece": "conversation",
    "Response": "generation",
    "Round": "stats",
    "Sampling": "sampling",
    "Session": "session",
    "Stats": "stats",
    "TokenLogprob": "logprobs",
    "generate": "generation",
    "load": "loading",
    "rounds": "generation",
    "stream_generate": "generation",
}

__all__ = [
    "Conversation",
    "DFlashError",
    "Guide",
    "Options",
    "Pair",
    "Piece",
    "Response",
    "Round",
    "Sampling",
    "Session",
    "Stats",
    "TokenLogprob",
    "generate",
    "load",
    "rounds",
    "stream_generate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dflash_mlx' has no attribute {name!r}")
    from .blas import prefer_openblas

    prefer_openblas()  # binds only if it comes before MLX's import; does nothing on macOS
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
