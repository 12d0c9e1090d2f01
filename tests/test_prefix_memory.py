"""What a chat remembers: between turns whose past is rewritten, and in the files it saves."""

import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from dflash_mlx.conversation import Conversation
from dflash_mlx.errors import UsageError
from dflash_mlx.generation import Response
from dflash_mlx.loading import Pair
from dflash_mlx.targets import target_for

from . import tiny
from .families import draft_config, random_draft
from .reduced import CONFIGS, MODULES, make
from .tiny import PLAIN, REWRITING, options, tiny_pair


def worded(family: str, template: str) -> Pair:
    """A pair of some family that reads and writes text."""
    config: dict[str, Any] = deepcopy(CONFIGS[family])
    for part in (config, config.get("text_config", config)):
        part["vocab_size"] = tiny.VOCAB
    if family.startswith("gemma4"):
        config["text_config"]["vocab_size_per_layer_input"] = tiny.VOCAB
    draft = draft_config(vocab_size=tiny.VOCAB, mask_token_id=tiny.MASK_ID, block_size=4)
    words: TokenizerWrapper = tiny.tokenizer(template)
    return Pair(
        target=target_for(make(config, MODULES.get(family, config["model_type"])), draft.taps),
        draft=random_draft(draft),
        tokenizer=words,
        eos_ids=frozenset(words.eos_token_ids),
        max_context=2048,
        name=family,
        draft_name="random",
    )


def ask(conversation: Conversation, text: str) -> Response:
    return list(conversation.ask(text, options(5, prefill_chunk=32)))[-1].response


def answer_of(conversation: Conversation) -> str:
    return conversation.messages[-1]["content"]


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "qwen3_5"])
def test_turns_that_rewrite_the_last_answer_compute_what_is_new(family: str) -> None:
    """What a turn keeps of an answer is three letters."""
    conversation = Conversation(worded(family, REWRITING))
    long = "a question that is much longer than any of the windows, and in several passes"
    before = ask(conversation, long).prompt_tokens
    for turn in range(4):
        last = ask(conversation, f"and number {turn}")
        assert last.stats.cached_tokens >= before - 1  # the opening of the answer may be new
        before = last.prompt_tokens
    fresh = Conversation(worded(family, REWRITING))
    fresh.messages = conversation.messages[:-2]
    ask(fresh, "and number 3")
    assert answer_of(fresh) == answer_of(conversation)


@pytest.mark.parametrize("template", [PLAIN, REWRITING])
@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "qwen3_5"])
def test_a_saved_conversation_goes_on_without_a_prefill(
    family: str, template: str, tmp_path: Path
) -> None:
    conversation = Conversation(worded(family, template))
    for text in ("something to begin with, at some length", "and more"):
        last = ask(conversation, text)
    conversation.save(tmp_path / "chat.json")
    loaded = Conversation(worded(family, template))
    loaded.load(tmp_path / "chat.json")
    again = ask(loaded, "go on")
    ask(conversation, "go on")
    assert answer_of(loaded) == answer_of(conversation)
    # All but the last token of the answer have rows, and the opening of a rewritten one is new.
    kept = last.prompt_tokens + 4 if template == PLAIN else last.prompt_tokens - 1
    assert again.stats.cached_tokens >= kept


def folder(path: Path) -> list[Path]:
    return sorted(path.rglob("*.safetensors"))


def test_saving_again_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    conversation = Conversation(tiny_pair())
    ask(conversation, "one")
    conversation.save(path)
    first = folder(tmp_path)
    conversation.reset()
    ask(conversation, "two")
    conversation.save(path)
    assert first and folder(tmp_path) and not set(first) & set(folder(tmp_path))
    assert {p.stat().st_mode & 0o777 for p in folder(tmp_path)} == {0o600}


@pytest.mark.parametrize("other", [tiny_pair(draft=False), tiny_pair()], ids=["pair", "ids"])
def test_another_pair_or_text_is_computed(
    other: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "chat.json"
    conversation = Conversation(tiny_pair())
    ask(conversation, "one")
    conversation.save(path)
    if other.draft is not None:
        content = json.loads(path.read_text())
        content["messages"][0]["content"] = "another"
        path.write_text(json.dumps(content))
    loaded = Conversation(other)
    loaded.load(path)
    response = ask(loaded, "two")
    assert response.stats.cached_tokens <= 1
    assert caplog.records == []
    fresh = Conversation(other)
    fresh.messages = loaded.messages[:-2]
    ask(fresh, "two")
    assert answer_of(fresh) == answer_of(loaded)


def test_a_damaged_cache_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    conversation = Conversation(tiny_pair())
    ask(conversation, "one")
    conversation.save(tmp_path / "chat.json")
    for path in folder(tmp_path):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    loaded = Conversation(tiny_pair())
    with caplog.at_level(logging.WARNING, "dflash_mlx"):
        loaded.load(tmp_path / "chat.json")
    assert ["checksum" in r.getMessage() for r in caplog.records] == [True]
    assert ask(loaded, "two").stats.cached_tokens == 0
    ask(conversation, "two")
    assert answer_of(loaded) == answer_of(conversation)


def test_a_conversation_saved_before_there_was_a_cache(tmp_path: Path) -> None:
    conversation = Conversation(tiny_pair())
    ask(conversation, "one")
    conversation.save(tmp_path / "chat.json")
    (tmp_path / "chat.json.cache").rename(tmp_path / "elsewhere")
    loaded = Conversation(tiny_pair())
    loaded.load(tmp_path / "chat.json")
    assert loaded.messages == conversation.messages
    assert ask(loaded, "two").stats.cached_tokens == 0


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "chat.json.cache").touch()
    conversation = Conversation(tiny_pair())
    ask(conversation, "one")
    with pytest.raises(UsageError, match=r"chat\.json\.cache cannot be used"):
        conversation.save(tmp_path / "chat.json")
    assert json.loads((tmp_path / "chat.json").read_text())["messages"]
