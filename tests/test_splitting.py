import pytest

from dflash_mlx.splitting import Splitter, opens_thinking

from .serving import agent_pair
from .tiny import tokenizer


def joined(splitter: Splitter, *texts: str) -> list[tuple[str, str]]:
    """What a splitter makes of a text, pieces of one kind in a row as one."""
    found: list[tuple[str, str]] = []
    for index, text in enumerate(texts):
        for kind, piece in splitter.split(text, ended=index == len(texts) - 1):
            if found and found[-1][0] == kind:
                found[-1] = (kind, found[-1][1] + piece)
            elif piece:
                found.append((kind, piece))
    return found


TEXT = "<think>\nhm</think>\n\nsee <tool_call>a</tool_call><tool_call>b</tool_call> <done"


@pytest.mark.parametrize("cut", [1, 3, 1000])
def test_kinds(cut: int) -> None:
    words = agent_pair().tokenizer
    pieces = [TEXT[i : i + cut] for i in range(0, len(TEXT), cut)]
    found = joined(Splitter(words, thinking=False, tools=True), *pieces)
    text = "".join(piece for kind, piece in found if kind == "tool")
    assert text == "ab"
    assert found[0] == ("thinking", "hm")
    assert found[1] == ("answer", "see ")
    assert found[-1] == ("answer", " <done")


def test_calls_are_kept_apart() -> None:
    words = agent_pair().tokenizer
    pieces = Splitter(words, thinking=False, tools=True).split(TEXT, ended=True)
    assert [p for p in pieces if p[0] == "tool"] == [("tool", "a"), ("tool", "b")]


def test_without_tools_or_thinking_markers_are_text() -> None:
    words = agent_pair().tokenizer
    found = joined(Splitter(words, thinking=False), "a<tool_call>b</tool_call>")
    assert found == [("answer", "a<tool_call>b</tool_call>")]
    found = joined(Splitter(tokenizer(), thinking=False, tools=True), TEXT)
    assert found == [("answer", TEXT)]


def test_an_answer_that_begins_inside_a_think_block() -> None:
    words = agent_pair().tokenizer
    assert joined(Splitter(words, thinking=True), "hm</think>yes") == [
        ("thinking", "hm"),
        ("answer", "yes"),
    ]
    past = words.encode("<|user|>is <think> a word<|end|>", add_special_tokens=False)
    opened = words.encode("<|assistant|><think>\n", add_special_tokens=False)
    closed = words.encode("<|assistant|><think>\n</think>", add_special_tokens=False)
    assert opens_thinking(words, past, past + opened)
    assert not opens_thinking(words, past, past + closed)
    assert not opens_thinking(words, past, past)
