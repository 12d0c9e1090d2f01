"""Which part of a target a rank holds.

By tensor parallelism every rank holds some heads and some columns of every layer, and mlx-lm's
own `shard` cuts them; by pipeline every rank holds some layers, the first ranks the first ones.
Embeddings, the last norm and the head are everywhere, but for a head that mlx-lm shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from .errors import UnsupportedError
from .ranks import Ranks

OTHERWISE = "use --shard pipeline, or another number of processes"


def split(layers: int, size: int) -> tuple[range, ...]:
    """The layers of each rank, as evenly as possible; the first ones have more."""
    each, more = divmod(layers, size)
    starts = [rank * each + min(rank, more) for rank in range(size + 1)]
    return tuple(map(range, starts[:-1], starts[1:]))


def layers_of(model: Any, ranks: Ranks) -> tuple[range, ...]:
    """The layers of each stage of a model that `cut` has cut, or of one that is whole."""
    total = int(text_part(model).args.num_hidden_layers)
    return split(total, ranks.size if ranks.staged else 1)


def text_part(model: Any) -> Any:
    """The language model in one that also sees."""
    return model.language_model if "language_model" in model else model


def check(text: Mapping[str, Any], name: str, ranks: Ranks) -> None:
    """Refuse a target that cannot be shared so, by its config and before anything is loaded.

    Args:
        text: the part of config.json that describes the language model.
        name: of the target, for the error text.
        ranks: how many share it, and how.

    Raises:
        UnsupportedError: sizes do not divide, or there are too few layers.
    """
    if ranks.staged:
        _check_stages(text, name, ranks)
    elif ranks.size > 1:
        for field, size in _divided(text, ranks.size):
            if size % ranks.size:
                raise UnsupportedError(
                    f"{name} cannot be sharded over {ranks.size} processes: {field} is {size}, "
                    f"which {ranks.size} does not divide; {OTHERWISE}"
                )


def cut(model: Any, name: str, ranks: Ranks) -> None:
    """Leave of a model, whose weights may still be on disk, what this rank holds.

    Raises:
        UnsupportedError: mlx-lm cannot shard this family, or these weights.
    """
    if ranks.staged:
        backbone = text_part(model).model
        stage = layers_of(model, ranks)[ranks.rank]
        backbone.layers = backbone.layers[stage.start : stage.stop]
    elif ranks.size > 1:
        if not hasattr(model, "shard"):
            raise UnsupportedError(
                f"mlx-lm {version('mlx-lm')} cannot shard {name} ({model.model_type}) by tensor "
                "parallelism; use --shard pipeline"
            )
        try:
            model.shard(ranks.group)
        except (AssertionError, ValueError) as error:  # groups of quantised weights, for example
            raise UnsupportedError(
                f"{name} cannot be sharded over {ranks.size} processes: {error}; {OTHERWISE}"
            ) from error
    if ranks.size > 1:  # layer by layer: what was read for a part of one is dropped again
        for layer in text_part(model).model.layers:
            mx.eval(layer.parameters())


def _check_stages(text: Mapping[str, Any], name: str, ranks: Ranks) -> None:
    layers = int(text.get("num_hidden_layers", 0))
    if layers < ranks.size:
        raise UnsupportedError(
            f"{name} has {layers} layers for {ranks.size} processes; start fewer of them"
        )
    if text.get("num_kv_shared_layers") or text.get("hidden_size_per_layer_input"):
        raise UnsupportedError(
            f"{name} cannot be cut into stages: its layers share keys and values, or have inputs "
            "of their own; run it in one process"
        )


def _divided(text: Mapping[str, Any], size: int) -> Sequence[tuple[str, int]]:
    """What is cut into `size` parts, with the names of the config."""
    names = ["num_attention_heads", "intermediate_size", "moe_intermediate_size"]
    names += ["shared_expert_intermediate_size", "linear_num_value_heads", "linear_num_key_heads"]
    kv_heads = text.get("num_key_value_heads") or size
    hybrid = "linear_num_value_heads" in text
    # Latent attention has no heads of keys; the hybrids repeat theirs where there are too few.
    if not text.get("kv_lora_rank") and not (hybrid and size % int(kv_heads) == 0):
        names.append("num_key_value_heads")
    if hybrid and not text.get("tie_word_embeddings"):
        names.append("vocab_size")
    return [(name, int(text[name])) for name in names if text.get(name)]
