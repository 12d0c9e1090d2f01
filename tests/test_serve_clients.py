"""The official Python clients against a real server on a socket."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import anthropic
import openai
import pytest

from dflash_mlx.generation import stream_generate
from dflash_mlx.serve.prompt import prepare
from dflash_mlx.serve.served import Access, Served
from dflash_mlx.serve.wanted import Wanted

from .serving import JSON_CALL, WEATHER, Scripted, agent_pair, in_letters, listening, real_server

QUESTION: Any = [{"role": "user", "content": "hello"}]
CHAT_TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
CLAUDE_TOOLS: Any = [{"name": "weather", "description": "d", "input_schema": WEATHER}]
KEY = "secret"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with real_server(access=Access(keys=(KEY,), hosts=("127.0.0.1",))) as (address, _):
        yield address


@pytest.fixture(scope="module")
def tools_url() -> Iterator[str]:
    pair = agent_pair()
    engine: Any = Scripted(pair, "<think>hm</think>see ", *JSON_CALL)
    with listening(Served(pair, engine, ("tiny",))) as address:
        yield address


@pytest.fixture(scope="module")
def expected() -> str:
    """What the library answers by itself."""
    pair = agent_pair()
    options = in_letters(pair)
    ids = prepare(pair, Wanted(options, messages=QUESTION)).ids
    return "".join(response.text for response in stream_generate(pair, ids, options))


def of_openai(url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def of_anthropic(url: str, key: str = KEY) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)


def test_chat(url: str, expected: str) -> None:
    with of_openai(url) as client:
        reply = client.chat.completions.create(
            model="tiny", messages=QUESTION, extra_body={"x_dflash": True}
        )
        assert reply.choices[0].message.content == expected
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 12
        assert reply.model_extra is not None
        assert reply.model_extra["x_dflash"]["generated_tokens"] == 12
        stream = client.chat.completions.create(
            model="tiny", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == expected
    assert chunks[-1].usage is not None


def test_a_second_turn_reads_only_what_is_new(url: str) -> None:
    with of_openai(url) as client:
        first: Any = [{"role": "user", "content": "tell me about prefixes, at some length"}]
        answer = client.chat.completions.create(model="tiny", messages=first)
        said: Any = {"role": "assistant", "content": answer.choices[0].message.content}
        more: Any = [*first, said, {"role": "user", "content": "and then?"}]
        again = client.chat.completions.create(model="tiny", messages=more)
    assert answer.usage is not None
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    known = again.usage.prompt_tokens_details.cached_tokens
    # All of the first turn but the last token of the answer, which has no rows yet.
    assert known == answer.usage.prompt_tokens + answer.usage.completion_tokens - 1
    figures = Request(f"{url}/metrics", headers={"x-api-key": KEY})
    with urlopen(figures) as reply:
        lines = dict(line.rsplit(b" ", 1) for line in reply.read().splitlines())
    assert float(lines[b"dflash_prefix_hits_total"]) >= 1
    assert float(lines[b"dflash_prefix_bytes"]) > 0


def test_completions(url: str) -> None:
    with of_openai(url) as client:
        reply = client.completions.create(model="tiny", prompt="abc", max_tokens=6)
        assert len(reply.choices[0].text) == 6
        stream = client.completions.create(model="tiny", prompt="abc", max_tokens=6, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == reply.choices[0].text


def test_responses(url: str, expected: str) -> None:
    with of_openai(url) as client:
        reply = client.responses.create(model="tiny", input="hello")
        assert reply.output_text == expected
        assert reply.status == "incomplete"
        with client.responses.stream(model="tiny", input="hello") as stream:
            kinds = [event.type for event in stream]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.incomplete"


def test_models(url: str) -> None:
    with of_openai(url) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"
    with of_anthropic(url) as claude:
        assert [model.id for model in claude.models.list()] == ["tiny"]
        assert claude.models.retrieve("tiny").display_name == "tiny"


def test_messages(url: str, expected: str) -> None:
    with of_anthropic(url) as client:
        reply = client.messages.create(model="tiny", messages=QUESTION, max_tokens=12)
        assert reply.content[0].type == "text"
        assert reply.content[0].text == expected
        assert reply.stop_reason == "max_tokens"
        with client.messages.stream(model="tiny", messages=QUESTION, max_tokens=12) as stream:
            assert "".join(stream.text_stream) == expected
            assert stream.get_final_message().usage.output_tokens == 12
        count = client.messages.count_tokens(model="tiny", messages=QUESTION)
    usage = reply.usage
    assert count.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_errors_are_of_the_right_class(url: str) -> None:
    with of_openai(url) as client:
        with pytest.raises(openai.BadRequestError, match="top_p is 3"):
            client.chat.completions.create(model="tiny", messages=QUESTION, top_p=3)
        with pytest.raises(openai.NotFoundError, match="there is tiny"):
            client.responses.create(model="gpt-5", input="x")
    with of_anthropic(url) as claude, pytest.raises(anthropic.BadRequestError, match="top_k"):
        claude.messages.create(
            model="tiny", messages=QUESTION, max_tokens=1, extra_body={"top_k": -5}
        )
    with of_openai(url, "no") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with of_anthropic(url, "no") as other, pytest.raises(anthropic.AuthenticationError):
        other.models.list()


def test_tools_in_chat(tools_url: str) -> None:
    with of_openai(tools_url) as client:
        reply = client.chat.completions.create(
            model="tiny", messages=QUESTION, tools=CHAT_TOOLS, tool_choice="auto"
        )
        assert reply.choices[0].finish_reason == "tool_calls"
        (call,) = reply.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"city": "Kyiv", "days": 2}
        with client.chat.completions.stream(
            model="tiny", messages=QUESTION, tools=CHAT_TOOLS
        ) as stream:
            message = stream.get_final_completion().choices[0].message
    assert message.content == "see "
    assert message.tool_calls
    assert message.tool_calls[0].function.arguments == call.function.arguments


def test_tools_in_responses(tools_url: str) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}]
    with of_openai(tools_url) as client:
        whole = client.responses.create(model="tiny", input="hello", tools=tools)
        with client.responses.stream(model="tiny", input="hello", tools=tools) as stream:
            streamed = stream.get_final_response()
    for reply in (whole, streamed):
        assert [item.type for item in reply.output] == ["reasoning", "message", "function_call"]
        call = reply.output[2]
        assert call.type == "function_call"
        assert json.loads(call.arguments) == {"city": "Kyiv", "days": 2}


def test_tools_in_messages(tools_url: str) -> None:
    with of_anthropic(tools_url) as client:
        whole = client.messages.create(
            model="tiny", messages=QUESTION, max_tokens=99, tools=CLAUDE_TOOLS
        )
        with client.messages.stream(
            model="tiny", messages=QUESTION, max_tokens=99, tools=CLAUDE_TOOLS
        ) as stream:
            streamed = stream.get_final_message()
    for reply in (whole, streamed):
        assert [block.type for block in reply.content] == ["thinking", "text", "tool_use"]
        assert reply.stop_reason == "tool_use"
        assert reply.content[2].type == "tool_use"
        assert reply.content[2].input == {"city": "Kyiv", "days": 2}
