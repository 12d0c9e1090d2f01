"""Choosing a draft's bits: the search by itself, and what it measures."""

from pathlib import Path

import mlx.core as mx
import pytest

from dflash_mlx.config import DraftConfig
from dflash_mlx.convert.calibrate import calibrate
from dflash_mlx.convert.choose import Choice, choose
from dflash_mlx.convert.plan import Source
from dflash_mlx.convert.recipe import GROUPS, DraftRecipe, TargetRecipe
from dflash_mlx.convert.texts import Text, drift, features, log_probabilities, tokens_per_round
from dflash_mlx.generation import rounds
from dflash_mlx.options import Options
from dflash_mlx.stats import Stats

from . import convert_cases as cases
from .families import ScriptedDraft, draft_config, language_model, make_pair, plain_ids, prompt_of

WEIGHTS = {"fc": 1, "attention": 2, "mlp": 5}


def size(recipe: DraftRecipe) -> int:
    return sum(weight * (recipe.bits(group) or 16) for group, weight in WEIGHTS.items())


def chosen(losses: dict[str, dict[int, float]], allowed: float = 0.02) -> Choice:
    """Choose where every group loses a known share in so many bits, and none in more."""

    def measure(recipe: DraftRecipe) -> float:
        lost = sum(losses.get(group, {}).get(recipe.bits(group) or 16, 0.0) for group in GROUPS)
        return 4.0 * (1 - lost)

    return choose(DraftRecipe(group_size=32), measure, size, allowed)


def test_the_smallest_is_taken_where_nothing_is_lost() -> None:
    assert chosen({}).chosen.recipe == DraftRecipe(3, 3, 3, 32)


def test_a_group_that_suffers_gets_more_bits() -> None:
    found = chosen({"fc": {3: 0.2, 4: 0.1, 5: 0.015}, "mlp": {3: 0.03}})
    assert found.chosen.recipe == DraftRecipe(5, 3, 4, 32)
    assert found.chosen.loss <= 0.02
    # What is hopeless is not measured in fewer bits still.
    assert [r.recipe.fc for r in found.parts if r.recipe.fc] == [8, 6, 5, 4]


def test_losses_add_up() -> None:
    """Each group alone could have 3 bits; all three together could not."""
    found = chosen({group: {3: 0.009} for group in GROUPS})
    assert found.chosen.recipe == DraftRecipe(4, 3, 3, 32)


def test_a_combination_that_is_worse_than_its_parts_is_not_taken() -> None:
    def measure(recipe: DraftRecipe) -> float:
        bits = [recipe.bits(group) or 16 for group in GROUPS]
        return 4.0 if sum(bits) >= 12 or max(bits) == 16 else 3.0

    found = choose(DraftRecipe(), measure, size, 0.02)
    assert sum(found.chosen.recipe.bits(g) or 16 for g in GROUPS) >= 12
    assert found.tried[0].loss > 0.02
    assert found.tried[-1] == found.chosen


def test_nothing_is_quantised_where_everything_loses() -> None:
    found = chosen({group: dict.fromkeys((8, 6, 5, 4, 3), 0.5) for group in GROUPS})
    assert found.chosen == found.base
    assert len(found.parts) == 3


def test_no_loss_is_allowed() -> None:
    found = chosen({"fc": {3: 0.001}, "attention": {3: 0.001}, "mlp": {3: 0.001}}, 0.0)
    assert found.chosen.recipe == DraftRecipe(4, 4, 4, 32)


@pytest.mark.parametrize("family", ["llama", "qwen3_5"])
def test_rounds_along_a_text_are_those_of_decoding(family: str) -> None:
    prompt, count = prompt_of(20), 60
    truth = [*prompt, *plain_ids(family, prompt, count)]
    draft = ScriptedDraft(draft_config(), truth, lambda start: start % 5)
    pair, stats = make_pair(family, draft), Stats()
    done = list(rounds(pair, prompt, Options(max_tokens=count)))
    for index, round_ in enumerate(done):
        stats.add(round_, first=index == 0)
    text = Text(tuple(truth), len(prompt))
    found = tokens_per_round(pair.target, draft, [(text, features(pair.target, text))])
    # Decoding's last rounds reach beyond the text, where the other does not count.
    whole = [r.accepted + 1 for r in done[1:]]
    position, counted = len(prompt), []
    for tokens in whole:
        if position + draft.config.block_size <= len(truth):
            counted.append(tokens)
        position += tokens
    assert len(counted) > 10
    assert found == sum(counted) / len(counted)


def test_drift_is_zero_for_the_same_and_grows_with_the_difference() -> None:
    target = make_pair("llama", None).target
    text = Text((*prompt_of(12), *plain_ids("llama", prompt_of(12), 8)), 12)
    before = log_probabilities(target, text)
    assert before.shape == (8, target.vocab_size)
    assert mx.allclose(mx.exp(before).sum(axis=-1), mx.array(1.0), atol=1e-5)
    assert drift([before], [before]) == 0
    wide = mx.log(mx.softmax(0.9 * before, axis=-1))
    wider = mx.log(mx.softmax(0.5 * before, axis=-1))
    assert 0 < drift([before], [wide]) < drift([before], [wider])


def test_a_whole_calibration(tmp_path: Path) -> None:
    """Of a random draft, of which nothing is accepted in any number of bits."""
    target = Source("t", cases.write_talking_target(tmp_path / "t"))
    draft = Source("d", cases.write_draft(tmp_path / "d", cases.DRAFT | {"vocab_size": 300}))
    steps: list[str] = []
    recipe, plain = TargetRecipe(bits=4, group_size=32), DraftRecipe(group_size=32)
    found = calibrate(
        target, draft, recipe, plain, count=1, allowed=0.02, step=steps.append, tokens=24
    )
    assert found.drift > 0
    assert found.choice.base.tau >= 1
    assert found.choice.chosen.loss <= 0.02
    assert steps[:2] == ["texts of the source", "texts of the converted target"]
    assert found.choice.chosen.size < found.choice.base.size


def test_the_scripted_draft_is_what_it_says() -> None:
    """The test above compares two numbers; here is one of them by itself."""
    config: DraftConfig = draft_config()
    prompt = prompt_of(20)
    truth = [*prompt, *plain_ids("llama", prompt, 40)]
    target = make_pair("llama", ScriptedDraft(config, truth, lambda _: 3)).target
    text = Text(tuple(truth), len(prompt))
    draft = ScriptedDraft(config, truth, lambda _: 3)
    assert tokens_per_round(target, draft, [(text, features(target, text))]) == 4.0
    assert language_model("llama") is target.model
