"""Our drafts against the published PyTorch implementation (`dflash` 0.1.0), float32, 1e-4.

Implementations disagree on some points; the published PyTorch code decides, except where noted:

- Without `is_causal`, sliding layers are causal inside the block and full ones are not (so do the
  published MLX code, vLLM and SGLang; mlx-dspark is always causal, mlx-vlm never).
- A row sees keys less than `sliding_window` positions back. The published MLX code lets the rows of
  a non-causal block see each other beyond that; blocks are narrower than windows, so nothing
  differs.
- `sliding_window` and `layer_types` count as config.json states them (the published MLX code). The
  PyTorch code forgets the window without `use_sliding_window`, which all published configs set.
- YaRN's amplitude is `attention_factor`, or the ratio of `mscale` and `mscale_all_dim`, or
  0.1 ln(factor) + 1. Serving engines ignored the ratio, which matters for Kimi alone (see `Rope`).
- Attention biases are read, as in PyTorch; the published MLX code has none.
- `input_embedding_scale` multiplies bare embeddings in PyTorch and scaled ones (Gemma's) in MLX;
  drafts get their embeddings from the target, which follows MLX. Here both get bare ones.
- DFlash 2 chooses among every row of the head, padding too; so it does here when it is not told how
  many ids the tokenizer has. Its q follows temperature alone; here it also follows the filters.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

from dflash_mlx.drafts.dflash2 import ConvolvedLayer, DFlash2Draft
from dflash_mlx.rope import Rope
from dflash_mlx.sampling import Sampling

from .parity_configs import CONFIGS, HIDDEN

if TYPE_CHECKING:
    from .parity import Ours

pytestmark = pytest.mark.parity
SECOND = [name for name in CONFIGS if "DFlash 2" in name]


@pytest.fixture(autouse=True)
def one_device() -> Iterator[None]:
    """The CPU, as for PyTorch: a GPU may trade digits of a product for speed."""
    with mx.stream(mx.cpu):
        yield


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_and_logits_are_the_published_ones(name: str) -> None:
    """A prompt and rounds of several widths; sliding windows fill up and move on."""
    from .parity import TOLERANCE, errors, worst

    found = worst(errors(name))
    print(f"\nparity {name}: hidden {found.hidden:.1e}, logits {found.logits:.1e}")
    assert found.hidden < TOLERANCE
    assert found.logits < TOLERANCE


@pytest.mark.parametrize("name", SECOND)
def test_the_selector_takes_the_published_path(name: str) -> None:
    """Greedy, the same ids; sampled, the same probabilities along the path that was drawn."""
    from .parity import TOLERANCE, drafts

    widths, had_a_say = set(), False
    for seed, (ours, a, theirs, b) in enumerate(drafts(name)):
        path, _ = ours.path(a, Sampling())
        assert path == theirs.greedy_path(b)
        widths.add(len(path))
        had_a_say |= path != mx.argmax(a.logits, axis=-1).tolist()
        for temperature in (0.6, 1.0):
            path, q = ours.path(a, Sampling(temperature=temperature), seed)
            assert q is not None
            assert np.abs(q - theirs.probabilities(b, path, temperature)).max() < TOLERANCE
            assert ((q > 0).sum(axis=-1) <= 16).all()
    assert len(widths) == 3
    assert had_a_say


def other_rope(**changes: Any) -> Callable[["Ours"], None]:
    return lambda ours: change_config(ours, rope=replace(ours.config.rope, **changes))


def change_config(ours: "Ours", **changes: Any) -> None:
    ours.draft = ours.read(**changes)


def other_taps(ours: "Ours") -> None:
    features = np.roll(ours.target.features, HIDDEN, axis=1)
    ours.target = replace(ours.target, features=features)


def change_layers(ours: "Ours", change: Callable[[Any], None]) -> None:
    for layer in ours.draft.layers:
        change(layer)
    ours.draft.prepare()


def bare_output(layer: Any) -> None:
    layer.self_attn.o_proj.bias = mx.zeros_like(layer.self_attn.o_proj.bias)


def bare_values(layer: Any) -> None:
    layer.self_attn.v_proj.bias = mx.zeros_like(layer.self_attn.v_proj.bias)


def swap_convolutions(layer: ConvolvedLayer) -> None:
    layer.attention_conv.base_kernel = layer.attention_conv.base_kernel[::-1]


def reverse_kernels(layer: ConvolvedLayer) -> None:
    layer.mlp_conv.base_kernel = layer.mlp_conv.base_kernel[:, ::-1]


def freeze_kernels(layer: ConvolvedLayer) -> None:
    projection = layer.mlp_conv.kernel_projection
    projection.weight = mx.zeros_like(projection.weight)


MUTATIONS: dict[str, tuple[str, Callable[["Ours"], None]]] = {
    "taps in another order": ("Qwen3 4B, 8B", other_taps),
    "theta": ("Qwen3 4B, 8B", other_rope(theta=1e7)),
    "full layers causal": ("Qwen3 4B, 8B", lambda o: change_config(o, causal=(True,) * 5)),
    "Llama's rope unscaled": (
        "Llama-3.1-8B (scaled rope)",
        lambda o: change_config(o, rope=Rope("default", 5e5)),
    ),
    "YaRN's factor": ("gpt-oss-20b", other_rope(factor=64.0)),
    "YaRN's amplitude": ("Kimi-K2.5, K2.6", other_rope(attention_factor=1.4158883083359672)),
    "YaRN's bounds": ("Kimi-K2.5, K2.6", other_rope(beta_fast=1.5)),
    "YaRN truncated": ("gpt-oss-120b", other_rope(truncate=True)),
    "no bias behind attention": ("gpt-oss-20b", lambda o: change_layers(o, bare_output)),
    "no bias of values": ("gpt-oss-20b", lambda o: change_layers(o, bare_values)),
    "sliding layers see ahead": ("Qwen3.6-27B", lambda o: change_config(o, causal=(False,) * 5)),
    "the last layer causal": (
        "Qwen3.5, 3.6 (June 2026)",
        lambda o: change_config(o, causal=(True,) * 6),
    ),
    "a window one wider": ("Qwen3.6-27B", lambda o: change_config(o, sliding_window=41)),
    "a window one narrower": ("Qwen3.6-27B", lambda o: change_config(o, sliding_window=39)),
    "no soft cap": ("Gemma 4 31B", lambda o: change_config(o, final_logit_softcapping=None)),
    "embeddings unscaled": (
        "Gemma 4 26B-A4B (scaled embeddings)",
        lambda o: change_config(o, input_embedding_scale=1.0),
    ),
    "DFlash 2 causal": (
        "Qwen3.8-27B (DFlash 2)",
        lambda o: change_config(o, causal=(True,) * 5),
    ),
    "convolutions swapped": (
        "Qwen3.8-27B (DFlash 2)",
        lambda o: change_layers(o, swap_convolutions),
    ),
    "kernels reversed": ("Qwen3.8-27B (DFlash 2)", lambda o: change_layers(o, reverse_kernels)),
    "kernels the same in every row": (
        "Qwen3.8-27B (DFlash 2)",
        lambda o: change_layers(o, freeze_kernels),
    ),
    "logits unscaled": (
        "Muse-Glimmer-30B (DFlash 2)",
        lambda o: change_config(o, output_multiplier=1.0),
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_draft_is_noticed(mutation: str) -> None:
    from .parity import TOLERANCE, errors

    name, change = MUTATIONS[mutation]
    assert any(max(e.hidden, e.logits) > 30 * TOLERANCE for e in errors(name, change))


def test_a_wrong_selector_is_noticed() -> None:
    from .parity import drafts

    def swap(ours: "Ours") -> None:
        assert isinstance(ours.draft, DFlash2Draft)
        selector = ours.draft.candidate_selector
        a, b = selector.predecessor_codebook, selector.successor_codebook
        selector.predecessor_codebook, selector.successor_codebook = b, a

    rounds = drafts("Qwen3.8-27B (DFlash 2)", swap)
    assert any(o.path(a, Sampling())[0] != t.greedy_path(b) for o, a, t, b in rounds)
