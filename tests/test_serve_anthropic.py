"""What Anthropic's API makes of an answer."""

from typing import Any

from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from dflash_mlx.errors import Busy, UsageError

from .serving import HELLO, JSON_CALL, WEATHER, events, serve_texts

URL = "/v1/messages"
TOOLS = [{"name": "weather", "description": "d", "input_schema": WEATHER}]


def ask(client: Any, **body: Any) -> Any:
    reply = client.post(URL, json={"messages": HELLO, "max_tokens": 50, **body})
    assert reply.status_code == 200, reply.text
    Message.model_validate(reply.json())
    return reply.json()


def stream(client: Any, **body: Any) -> list[Any]:
    more = {"messages": HELLO, "max_tokens": 50, "stream": True}
    reply = client.post(URL, json=more | body)
    found = events(reply.text)
    for item in found:
        if item["type"] not in ("ping", "error"):
            TypeAdapter(RawMessageStreamEvent).validate_python(item)
    return found


def test_an_answer_and_its_stream() -> None:
    client, engine = serve_texts("<think>hm</think>", "good ", "day")
    reply = ask(client, system=[{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}])
    assert [block["type"] for block in reply["content"]] == ["thinking", "text"]
    assert reply["content"][1]["text"] == "good day"
    assert reply["stop_reason"] == "end_turn"
    assert reply["usage"]["cache_read_input_tokens"] == 3
    assert reply["usage"]["input_tokens"] == len(engine.asked[0][0]) - 3
    assert engine.prompt.startswith("<|system|>be\n\nbrief<|end|>")
    found = stream(client, x_dflash=True)
    kinds = [item["type"] for item in found]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    texts = [item["delta"].get("text", "") for item in found if "delta" in item]
    assert "".join(texts) == "good day"
    assert found[-2]["x_dflash"]["rounds"] == 2


def test_a_tool_call() -> None:
    client, _ = serve_texts("see: ", *JSON_CALL)
    reply = ask(client, tools=TOOLS, tool_choice={"type": "auto"})
    assert reply["stop_reason"] == "tool_use"
    assert reply["content"][1]["input"] == {"city": "Kyiv", "days": 2}
    parts = [
        item["delta"]["partial_json"]
        for item in stream(client, tools=TOOLS)
        if item.get("delta", {}).get("type") == "input_json_delta"
    ]
    assert len(parts) > 3
    assert "".join(parts) == '{"city": "Kyiv", "days": 2}'


def test_a_conversation_as_claude_code_sends_it() -> None:
    client, engine = serve_texts("ok")
    mark = {"type": "ephemeral"}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "do it", "cache_control": mark}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I will"},
                {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "x"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": "gone", "is_error": True},
                {"type": "text", "text": "go on"},
            ],
        },
        {"role": "user", "content": "please"},
    ]
    ask(
        client,
        model="tiny",
        messages=messages,
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cch=fa690;"},
            {"type": "text", "text": "You are", "cache_control": mark},
        ],
        tools=[{**TOOLS[0], "cache_control": mark, "eager_input_streaming": True}],
        metadata={"user_id": "u"},
        thinking={"type": "adaptive"},
        output_config={"effort": "high"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )
    assert engine.prompt.partition("<|end|>")[2] == (
        "<|system|>You are<|end|><|user|>do it<|end|><|assistant|><think>hm</think>I will"
        '<tool_call>{"name": "weather", "arguments": {"city": "x"}}</tool_call><|end|>'
        "<|tool|>Error: gone<|end|><|user|>go on\n\nplease<|end|><|assistant|>"
    )


def test_an_answer_that_was_begun_goes_on() -> None:
    client, engine = serve_texts("ok")
    ask(client, messages=[*HELLO, {"role": "assistant", "content": "I am"}])
    assert engine.prompt.endswith("<|assistant|>I am")


def test_a_stop_text() -> None:
    client, engine = serve_texts("one two")
    engine.pair.eos_ids = frozenset()  # as if a stop text had ended it
    reply = ask(client, stop_sequences=["END", "two"])
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", "two")
    assert engine.asked[0][1].stop == ("END", "two")


def test_thinking_can_be_turned_off() -> None:
    client, engine = serve_texts("ok")
    ask(client, thinking={"type": "disabled"})
    assert engine.prompt.endswith("<think></think>")


def test_tokens_are_counted() -> None:
    client, engine = serve_texts("ok")
    body = {"messages": HELLO, "tools": TOOLS, "system": "be brief"}
    count = client.post(f"{URL}/count_tokens", json=body).json()
    ask(client, tools=TOOLS, system="be brief")
    assert count == {"input_tokens": len(engine.asked[0][0])}


def test_errors_look_like_anthropics() -> None:
    client, engine = serve_texts("half")
    engine.breaks = UsageError("no more")
    assert stream(client)[-1] == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "no more"},
    }
    engine.error = Busy("full", 1)
    reply = client.post(URL, json={"messages": HELLO, "max_tokens": 1})
    assert reply.status_code == 429
    assert reply.json()["error"]["type"] == "rate_limit_error"


def test_a_call_that_is_cut_is_still_an_object() -> None:
    client, engine = serve_texts(JSON_CALL[:60])
    engine.reason = "length"
    reply = ask(client, tools=TOOLS)
    assert reply["stop_reason"] == "max_tokens"
    assert set(reply["content"][0]["input"]) == {"input"}
