"""What single families bring along: windows that move, sinks, caps, shared keys, names."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_map_with_path

from dflash_mlx.generation import rounds
from dflash_mlx.kv import Scalar, State
from dflash_mlx.loading import load
from dflash_mlx.options import Options
from dflash_mlx.session import Session
from dflash_mlx.targets import target_for
from dflash_mlx.targets.base import Target
from dflash_mlx.targets.muse_glimmer import MuseGlimmerTarget

from .families import MASK_ID, ScriptedDraft, draft_config, make_pair, plain_ids, prompt_of
from .reduced import CONFIGS, WINDOW, build, language_model
from .tiny import tokenizer

SLIDING = ("llama-sliding", "gpt_oss", "gemma4-shared", "muse_glimmer")
# Where the type is not the name of mlx-lm's module, or the config nests its text part.
RENAMED = ("gemma4", "gemma4-unified", "gemma4-shared", "minimax_m2", "muse_glimmer")


def close(a: mx.array, b: mx.array) -> bool:
    return bool(mx.allclose(a, b, rtol=1e-3, atol=1e-3).item())


@pytest.mark.parametrize("family", SLIDING)
@pytest.mark.parametrize("fixed", [False, True])
def test_rollback_after_the_window_has_moved(family: str, fixed: bool) -> None:
    """Verify as many rows as the window has, keep any number of them, long after it wrapped."""
    model, ids = language_model(family), prompt_of(900)
    truth = model(mx.array([ids]))[0]
    target = target_for(model)
    cache = target.new_cache()

    def verify(block: list[int], fixed: bool) -> mx.array:
        start = mx.array(cache.length, mx.int32) if fixed else cache.length
        state = cache.begin(cache.length, len(block), fixed)
        hidden, _, state = target.forward(mx.array([block]), start, state)
        cache.update(state)
        return target.logits(hidden)[0]

    for first in range(0, 700, 50):
        verify(ids[first : first + 50], False)
        cache.commit(50)
    assert max(cache.state["base"]) > 0, "rows were dropped"
    for kept in [*range(WINDOW + 1), 0, 3, 0]:
        at = cache.length
        wrong = [(token + 1) % MASK_ID for token in ids[at + kept : at + WINDOW]]
        logits = verify(ids[at : at + kept] + wrong, fixed)
        assert close(logits[:kept], truth[at : at + kept]), kept
        cache.commit(kept)
    logits = verify(ids[cache.length : cache.length + 5], fixed)
    assert close(logits, truth[cache.length : cache.length + 5])


def test_mlx_lm_cannot_roll_back_there() -> None:
    """Why the caches here are not mlx-lm's; should this fail, it has learned to."""
    from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

    model = language_model("gpt_oss")
    cache = make_prompt_cache(model)
    model(mx.array([prompt_of(2 * WINDOW)]), cache=cache)
    assert trim_prompt_cache(cache, 3) == 0


def test_sinks_take_part() -> None:
    model, ids = build("gpt_oss"), mx.array([prompt_of(40)])
    with_sinks = model(ids)
    target = target_for(model)
    cache = target.new_cache()
    hidden, _, _ = target.forward(ids, 0, cache.begin(0, 40, False))
    assert close(target.logits(hidden), with_sinks)

    def without(path: str, value: mx.array) -> mx.array:
        return mx.zeros_like(value) if path.endswith("sinks") else value

    model.update(tree_map_with_path(without, model.parameters()))
    assert not close(model(ids), with_sinks)


@pytest.mark.parametrize("family", ["gemma4", "muse_glimmer"])
def test_caps_are_the_targets_alone(family: str) -> None:
    """Session and steps take the target's own logits, a draft the bare head."""
    model, prompt = language_model(family), prompt_of(24)
    pair = make_pair(family, None)
    own = model(mx.array([prompt]))[:, -1]
    assert close(Session(pair.target, None).prefill(prompt, chunk=512)[0], own)

    hidden = mx.random.normal((1, 3, 48), key=mx.random.key(5))
    bare = pair.target.head(hidden)
    table = pair.target.backbone.embed_tokens
    tied = table.as_linear(hidden)
    assert mx.array_equal(bare, tied if family == "gemma4" else model.lm_head(hidden)).item()
    assert not close(pair.target.logits(hidden), bare)


class Watching(ScriptedDraft):
    """Keeps what it is given."""

    blocks: list[mx.array]
    projected: list[tuple[mx.array, mx.array]]

    def forward(self, block: mx.array, start: Scalar, state: State) -> tuple[mx.array, State]:
        self.blocks.append(block)
        hidden, state = super().forward(block, start, state)
        self._hidden = hidden
        return hidden, state

    def shape_logits(self, logits: mx.array) -> mx.array:
        self.projected.append((self._hidden[:, -logits.shape[1] :], logits))
        return super().shape_logits(logits)


def expected_block(target: Target, family: str, ids: mx.array) -> mx.array:
    rows = target.backbone.embed_tokens(ids)
    return rows * 48**0.5 if family == "gemma4" else rows


@pytest.mark.parametrize("family", ["gemma4", "muse_glimmer", "llama"])
def test_what_a_draft_gets(family: str) -> None:
    """Gemma's embeddings scaled, Muse's not normalised, nobody's logits capped."""
    prompt = prompt_of(24)
    text = plain_ids(family, prompt, 8)
    draft = Watching(draft_config(block_size=4), prompt + text, lambda start: 2)
    draft.blocks, draft.projected = [], []
    pair = make_pair(family, draft)
    list(rounds(pair, prompt, Options(max_tokens=4, compiled=False)))
    wanted = expected_block(pair.target, family, mx.array([[text[0], *[MASK_ID] * 3]]))
    assert close(draft.blocks[0], wanted)
    hidden, logits = draft.projected[0]
    assert close(logits, pair.target.head(hidden))


class Counting(MuseGlimmerTarget):
    """Counts the rows whose own logits are asked for."""

    asked: list[int]

    def logits(self, hidden: mx.array) -> mx.array:
        self.asked.append(hidden.shape[1])
        return super().logits(hidden)


@pytest.mark.parametrize(("speculate", "rows"), [(True, 4), (False, 1)])
def test_every_step_takes_the_targets_own_logits(speculate: bool, rows: int) -> None:
    prompt = prompt_of(24)
    text = plain_ids("muse_glimmer", prompt, 8)
    draft = ScriptedDraft(draft_config(block_size=4), prompt + text, lambda start: 3)
    pair = make_pair("muse_glimmer", draft)
    pair.target = Counting(pair.target.model, draft.config.taps)
    pair.target.asked = []
    options = Options(max_tokens=6, compiled=False, speculate=speculate)
    done = list(rounds(pair, prompt, options))
    assert pair.target.asked == [1, *[rows] * (len(done) - 1)]


def write(folder: Path, config: dict[str, Any], model: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    tokenizer()._tokenizer.save_pretrained(folder)


def check_loaded(folder: Path, model: Any) -> None:
    pair = load(str(folder), speculate=False, dtype="float32")
    prompt = prompt_of(24)
    logits, _ = Session(pair.target, None).prefill(prompt, chunk=512)
    assert close(logits, model(mx.array([prompt]))[:, -1])


@pytest.mark.parametrize("family", RENAMED)
def test_a_folder_loads_under_the_name_in_its_config(family: str, tmp_path: Path) -> None:
    model = language_model(family)
    write(tmp_path, CONFIGS[family], model)
    check_loaded(tmp_path, model)


def test_mistral_is_llama_by_another_name(tmp_path: Path) -> None:
    model = language_model("llama")
    write(tmp_path, CONFIGS["llama"] | {"model_type": "mistral"}, model)
    check_loaded(tmp_path, model)


def test_a_flattened_config_loads(tmp_path: Path) -> None:
    """As conversions of Muse write it: the text part alone, under the name of the whole."""
    model = language_model("muse_glimmer")
    flat = CONFIGS["muse_glimmer"]["text_config"] | {"model_type": "muse_glimmer"}
    write(tmp_path, flat, model)
    check_loaded(tmp_path, model)


def test_the_text_part_of_gemma_alone(tmp_path: Path) -> None:
    model = language_model("gemma4").language_model
    write(tmp_path, CONFIGS["gemma4"]["text_config"], model)
    check_loaded(tmp_path, model)
