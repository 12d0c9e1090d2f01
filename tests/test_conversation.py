import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dflash_mlx import conversation as module
from dflash_mlx.conversation import Conversation, Piece
from dflash_mlx.errors import UsageError
from dflash_mlx.generation import Response
from dflash_mlx.stats import Stats

from .tiny import OPENING, PLAIN, REWRITING, options, tiny_pair


def say(conversation: Conversation, text: str, **more: Any) -> str:
    return "".join(p.text for p in conversation.ask(text, options(**more)))


def last(pieces: Iterator[Piece]) -> Response:
    return list(pieces)[-1].response


def contents(conversation: Conversation) -> list[str]:
    return [message["content"] for message in conversation.messages]


def script(
    monkeypatch: pytest.MonkeyPatch, *texts: str, error: BaseException | None = None
) -> None:
    """Make the model say `texts`, a round each, and then stop or fail."""

    def stream(*_: Any) -> Iterator[Response]:
        for index, text in enumerate(texts):
            end = "stop" if error is None and index == len(texts) - 1 else None
            yield Response(text, (index,), 0, 1, 0.0, 1, 0.0, 0.0, end, Stats())
        if error is not None:
            raise error

    monkeypatch.setattr(module, "stream_generate", stream)


def test_roles_alternate() -> None:
    conversation = Conversation(tiny_pair(), system="be brief")
    answer = say(conversation, "hi")
    assert conversation.messages == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": answer},
    ]
    text = conversation.pair.tokenizer.decode(conversation.prompt_ids)
    assert (
        text
        == f"<|system|>be brief<|end|><|user|>hi<|end|><|assistant|>{answer}<|end|><|assistant|>"
    )


@pytest.mark.parametrize("draft", [True, False])
def test_a_second_turn_computes_only_new_tokens(draft: bool) -> None:
    conversation = Conversation(tiny_pair(draft=draft))
    first = last(conversation.ask("hello there", options()))
    assert first.stats.cached_tokens == 0
    second = last(conversation.ask("and now", options()))
    # All but the last token of an answer have rows in the cache.
    assert second.stats.cached_tokens == first.prompt_tokens + 12 - 1


@pytest.mark.parametrize("template", [PLAIN, REWRITING])
def test_a_later_answer_is_that_of_a_fresh_conversation(template: str) -> None:
    conversation = Conversation(tiny_pair(template))
    for question in ("one", "two", "three"):
        say(conversation, question)
    fresh = Conversation(tiny_pair(template))
    fresh.messages = conversation.messages[:-2]
    assert say(fresh, "three") == contents(conversation)[-1]


def test_the_rewriting_template_rewrites() -> None:
    conversation = Conversation(tiny_pair(REWRITING))
    first = last(conversation.ask("one", options()))
    second = last(conversation.ask("two", options()))
    assert second.stats.cached_tokens == first.prompt_tokens + 3


def test_undo() -> None:
    conversation = Conversation(tiny_pair())
    assert not conversation.undo()
    say(conversation, "one")
    kept = contents(conversation)
    say(conversation, "two")
    assert conversation.undo()
    assert contents(conversation) == kept


def test_retry_replaces_the_answer() -> None:
    conversation = Conversation(tiny_pair())
    say(conversation, "one", max_tokens=3)
    list(conversation.retry(options(max_tokens=5)))
    assert contents(conversation)[0] == "one"
    assert len(contents(conversation)[1]) == 5
    assert len(conversation.messages) == 2


def test_retry_without_a_question() -> None:
    with pytest.raises(UsageError, match="nothing to retry"):
        list(Conversation(tiny_pair()).retry())


def test_a_failed_retry_keeps_the_old_answer() -> None:
    conversation = Conversation(tiny_pair())
    say(conversation, "one")
    before = list(conversation.messages)
    conversation.pair.max_context = 3
    with pytest.raises(UsageError, match="context"):
        list(conversation.retry(options()))
    assert conversation.messages == before


def test_reset_keeps_the_system_prompt() -> None:
    conversation = Conversation(tiny_pair(), system="be brief")
    first = say(conversation, "one")
    conversation.reset()
    assert conversation.messages == []
    assert say(conversation, "one") == first


def test_an_interrupted_answer_stays_as_far_as_it_got() -> None:
    conversation = Conversation(tiny_pair())
    pieces = conversation.ask("one", options())
    text = next(pieces).text + next(pieces).text
    pieces.close()
    assert contents(conversation) == ["one", text]
    # And the session goes on as if the answer had been that short.
    fresh = Conversation(tiny_pair())
    fresh.messages = list(conversation.messages)
    assert say(conversation, "two") == say(fresh, "two")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug")])
def test_an_answer_that_fails_stays_as_far_as_it_got(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    conversation = Conversation(tiny_pair())
    script(monkeypatch, "half an ", "answer", error=error)
    with pytest.raises(type(error)):
        list(conversation.ask("one"))
    assert contents(conversation) == ["one", "half an answer"]


def test_a_question_without_an_answer_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation(tiny_pair())
    script(monkeypatch, "", error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        list(conversation.ask("one"))
    assert conversation.messages == []


def test_an_empty_answer_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation(tiny_pair())
    script(monkeypatch, "")
    list(conversation.ask("one"))
    assert contents(conversation) == ["one", ""]


@pytest.mark.parametrize("text", ["", " \n", "x" * 3000, "half \ud800"])
def test_a_question_that_cannot_be_served_is_dropped(text: str) -> None:
    conversation = Conversation(tiny_pair())
    say(conversation, "one")
    before = list(conversation.messages)
    with pytest.raises(UsageError):
        say(conversation, text)
    assert conversation.messages == before


def test_a_model_without_a_chat_template() -> None:
    with pytest.raises(UsageError, match="--raw"):
        Conversation(tiny_pair(template=None))


def test_a_template_that_refuses() -> None:
    pair = tiny_pair("{{ raise_exception('no system role') }}")
    with pytest.raises(UsageError, match="no system role"):
        say(Conversation(pair, system="x"), "one")


def split(monkeypatch: pytest.MonkeyPatch, template: str, *texts: str) -> tuple[str, str, str]:
    """Thinking, answer and what the history keeps."""
    conversation = Conversation(tiny_pair(template, thinking=True))
    script(monkeypatch, *texts)
    pieces = list(conversation.ask("one"))
    thinking = "".join(p.text for p in pieces if p.thinking)
    answer = "".join(p.text for p in pieces if not p.thinking)
    return thinking, answer, contents(conversation)[-1]


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        (PLAIN, ("<think>\nhm\n</think>\n\nfour",)),
        (PLAIN, ("<thi", "nk>", "\nhm\n</", "think>", "\n", "\nfo", "ur")),
        (OPENING, ("hm\n</think>\n\nfour",)),
        (OPENING, ("\nh", "m\n</thin", "k>\n\nfour")),
    ],
)
def test_thinking_is_told_from_the_answer(
    monkeypatch: pytest.MonkeyPatch, template: str, texts: tuple[str, ...]
) -> None:
    assert split(monkeypatch, template, *texts) == ("hm\n", "four", "four")


def test_what_is_held_back_comes_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert split(monkeypatch, PLAIN, "a ", "<think") == ("", "a <think", "a <think")
    assert split(monkeypatch, OPENING, "hm", "</thi") == ("hm</thi", "", "")


def test_every_round_brings_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation(tiny_pair(thinking=True))
    script(monkeypatch, "<thi", "nk>", "x</think>y")
    pieces = list(conversation.ask("one"))
    assert [(p.text, p.thinking, p.response.tokens) for p in pieces] == [
        ("", False, (0,)),
        ("", True, (1,)),
        ("x", True, (2,)),
        ("y", False, (2,)),
    ]


@pytest.mark.parametrize(("think", "opened"), [(None, True), (True, True), (False, False)])
def test_think_goes_to_the_template(
    monkeypatch: pytest.MonkeyPatch, think: bool | None, opened: bool
) -> None:
    conversation = Conversation(tiny_pair(OPENING, thinking=True), think=think)
    script(monkeypatch, "text")
    assert [p.thinking for p in conversation.ask("one")] == [opened]


def test_a_marker_in_a_question_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation(tiny_pair(thinking=True))
    script(monkeypatch, "a tag")
    assert not any(p.thinking for p in conversation.ask("what does <think> mean?"))


def test_progress_is_passed_on() -> None:
    seen: list[tuple[int, int]] = []
    conversation = Conversation(tiny_pair())
    list(conversation.ask("hello", options(prefill_chunk=4), lambda *args: seen.append(args)))
    assert seen == [(4, 8), (8, 8)]


def test_save_and_load(tmp_path: Path) -> None:
    conversation = Conversation(tiny_pair(), system="be brief")
    say(conversation, "ünicode")
    conversation.save(tmp_path / "chat.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chat.json", "chat.json.cache"]
    assert json.loads((tmp_path / "chat.json").read_text("utf-8"))["model"] == "tiny"
    other = Conversation(tiny_pair())
    other.load(tmp_path / "chat.json")
    assert (other.system, other.messages) == ("be brief", conversation.messages)
    assert say(other, "go on") == say(conversation, "go on")


@pytest.mark.parametrize("name", ["missing/chat.json", "."])
def test_save_to_an_impossible_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        Conversation(tiny_pair()).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


GOOD = {"format": module.FORMAT, "version": 1, "model": "tiny", "system": None, "messages": []}
QUESTION = {"role": "user", "content": "one"}
ANSWER = {"role": "assistant", "content": "two"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no valid JSON"),
        (b"\xff", "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b"[]", "not a saved conversation"),
        ({"messages": []}, "not a saved conversation"),
        (GOOD | {"version": 2}, "format version 2"),
        (GOOD | {"system": 1}, "damaged"),
        (GOOD | {"messages": None}, "damaged"),
        (GOOD | {"messages": [QUESTION]}, "damaged"),
        (GOOD | {"messages": [ANSWER, QUESTION]}, "damaged"),
        (GOOD | {"messages": [QUESTION, ANSWER | {"content": None}]}, "damaged"),
        (GOOD | {"messages": [QUESTION, "two"]}, "damaged"),
        (GOOD | {"system": "\ud800"}, "no valid JSON"),
    ],
)
def test_load_refuses(tmp_path: Path, content: bytes | dict[str, Any], message: str) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    conversation = Conversation(tiny_pair(), system="be brief")
    with pytest.raises(UsageError, match=message):
        conversation.load(path)
    assert (conversation.system, conversation.messages) == ("be brief", [])


def test_load_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        Conversation(tiny_pair()).load(tmp_path / "none.json")
