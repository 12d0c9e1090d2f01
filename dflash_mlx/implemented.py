"""Which fields of a draft's config.json would change what it computes, and are not implemented.

Such a draft would run, and most of its tokens would be rejected: nothing else would tell. At the
top level, which is full of fields that transformers writes for everyone, those are refused by
name that other programs' drafts are known to use; in `dflash_config`, which is about nothing but
the draft, whatever is not known is. What comes with tensors of its own is caught twice: tensors
are read strictly by name.
"""

from __future__ import annotations

from typing import Any

from .errors import UnsupportedError
from .fields import Fields

# Name: the values under which a field changes nothing. It may stand at the top or in
# dflash_config; null changes nothing either.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_mode": ("gqa", "mha"),
    "attention_modes": (),
    "attention_sink_bias": (False,),
    "attention_value_scale": (1.0,),
    "fc_norm": (False,),
    "hidden_act": ("silu", "swish"),
    "projector_type": ("dflash", "dflash2"),
    "sample_from_anchor": (False,),
    "sliding_window_non_causal": (False,),
    "use_swa": (False,),
    "value_scale": (1.0,),
}
# Name: the field whose value it has to repeat.
SAME_AS = {
    "target_hidden_size": "hidden_size",
    "v_head_dim": "head_dim",
}
# The rest of dflash_config: read by `DraftConfig`, or about training, or implied by another.
KNOWN_INSIDE = {
    *("block_size", "causal", "final_logit_softcapping", "input_embedding_scale"),
    *("mask_token", "mask_token_id", "num_target_layers", "output_multiplier"),
    *("target_layer_ids", "conv_group_size", "conv_kernel_size", "selector_rank"),
    *("selector_top_k", "loss_decay_gamma", "num_anchors", "swa_window_size"),
}


def check_implemented(top: Fields, inner: Fields) -> None:
    """Refuse fields of a config's top level and of its dflash_config.

    Raises:
        UnsupportedError: names the field and its value.
    """
    for fields in (top, inner):
        for name, value in fields.raw.items():
            if value is not None and not _is_neutral(name, value, top, fields is inner):
                raise UnsupportedError(
                    f"{fields.source}: {name} is {value!r}, which is not implemented; the draft "
                    "would run as something it was not trained to be"
                )
    _check_derived_layers(top)


def _is_neutral(name: str, value: Any, top: Fields, inside: bool) -> bool:
    if name in SAME_AS:
        return bool(value == top.raw.get(SAME_AS[name]))
    if name in NEUTRAL:
        return value in NEUTRAL[name]
    return not inside or name in KNOWN_INSIDE


def _check_derived_layers(top: Fields) -> None:
    """Refuse a config whose sliding layers only transformers' own rule would tell."""
    layers = top.get("num_hidden_layers", int, 0)
    derives = top.get("use_sliding_window", bool, False) and not top.raw.get("layer_types")
    if derives and top.get("max_window_layers", int, layers) < layers:
        raise UnsupportedError(
            f"{top.source}: use_sliding_window is set but layer_types is missing; list the "
            "type of every layer there"
        )
