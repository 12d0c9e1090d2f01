import pytest
from mlx_lm.chat_templates import muse_spark
from mlx_lm.tokenizer_utils import TokenizerWrapper

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


HARMONY = (
    "<|channel|>analysis<|message|>The user greets.<|end|><|start|>assistant"
    "<|channel|>commentary<|message|>One moment.<|end|><|start|>assistant"
    "<|channel|>final<|message|>Hello!"
)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_channels_of_gpt_oss(step: int) -> None:
    words = tokenizer()
    words._tokenizer.add_special_tokens({"additional_special_tokens": ["<|channel|>"]})
    pieces = [HARMONY[i : i + step] for i in range(0, len(HARMONY), step)]
    found = joined(Splitter(words, thinking=False), *pieces)
    assert found == [("thinking", "The user greets."), ("answer", "One moment.Hello!")]
    assert joined(Splitter(words, thinking=False), "plain") == [("answer", "plain")]


@pytest.mark.parametrize("step", [1, 9, 1000])
def test_formats_that_mlx_lm_describes(step: int) -> None:
    """Muse's: headers are no text; calls are told apart only where there are tools."""
    words = tokenizer()
    words = TokenizerWrapper(
        words._tokenizer,
        response_format=muse_spark.RESPONSE_FORMAT,
        tool_call_start="<atem:function_calls>",
        tool_call_end="</atem:function_calls>",
        tool_parser=lambda *_: None,
    )
    text = (
        " to=self<|message|>hm<|eom|><|start|>x to=user<|message|>Hi.<|eom|>"
        " <atem:function_calls>f()</atem:function_calls> there"
    )
    pieces = [text[i : i + step] for i in range(0, len(text), step)]
    found = joined(Splitter(words, thinking=False, tools=True), *pieces)
    assert found == [("thinking", "hm"), ("answer", "Hi."), ("tool", "f()"), ("answer", " there")]
    assert joined(Splitter(words, thinking=False), *pieces)[:2] == found[:2]
