"""What OpenAI's Responses API makes of an answer."""

import json
from typing import Any, get_args

from openai.types.responses import Response, ResponseStreamEvent

from dflash_mlx.errors import UsageError

from .serving import JSON_CALL, WEATHER, events, serve_texts

URL = "/v1/responses"
EVENTS = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(ResponseStreamEvent)[0])
}
FUNCTION = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}


def ask(client: Any, **body: Any) -> Any:
    reply = client.post(URL, json={"input": "hello", **body})
    assert reply.status_code == 200, reply.text
    whole = reply.json()
    Response.model_validate(whole, strict=False)
    return whole


def stream(client: Any, **body: Any) -> list[Any]:
    reply = client.post(URL, json={"input": "hello", "stream": True, **body})
    assert reply.status_code == 200, reply.text
    found = events(reply.text)
    for item in found:
        EVENTS[item["type"]].model_validate(item)
    assert [item["sequence_number"] for item in found] == list(range(len(found)))
    return found


def without_ids(output: list[Any]) -> list[Any]:
    return [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in output]


def test_an_answer_and_its_stream() -> None:
    client, engine = serve_texts("<think>hm</think>", "good ", "day")
    whole = ask(client, instructions="be brief", x_dflash=True)
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message"]
    assert whole["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert whole["output"][1]["content"][0]["text"] == "good day"
    assert whole["status"] == "completed"
    assert whole["usage"]["input_tokens_details"]["cached_tokens"] == 3
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    assert whole["x_dflash"]["rounds"] == 2
    assert whole["instructions"] == "be brief"
    assert engine.prompt.startswith("<|system|>be brief<|end|><|user|>hello")
    found = stream(client)
    assert found[0]["type"] == "response.created"
    text = [e["delta"] for e in found if e["type"] == "response.output_text.delta"]
    assert "".join(text) == "good day"
    assert found[-1]["type"] == "response.completed"
    assert without_ids(found[-1]["response"]["output"]) == without_ids(whole["output"])


def test_the_token_limit_leaves_it_incomplete() -> None:
    client, engine = serve_texts("good")
    engine.reason = "length"
    assert ask(client)["incomplete_details"] == {"reason": "max_output_tokens"}
    assert stream(client)[-1]["type"] == "response.incomplete"


def test_a_function_call() -> None:
    client, _ = serve_texts(*JSON_CALL)
    (item,) = ask(client, tools=[FUNCTION])["output"]
    assert item["type"] == "function_call"
    assert json.loads(item["arguments"]) == {"city": "Kyiv", "days": 2}
    found = stream(client, tools=[FUNCTION])
    parts = [e["delta"] for e in found if e["type"] == "response.function_call_arguments.delta"]
    assert len(parts) > 3
    assert "".join(parts) == item["arguments"]


def test_tools_of_agents() -> None:
    patch = '<tool_call>{"name": "patch", "arguments": {"input": "*** Begin"}}</tool_call>'
    inner = '<tool_call>{"name": "mcp__weather", "arguments": {}}</tool_call>'
    client, engine = serve_texts(patch, inner)
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: LINE"}
    tools = [
        {"type": "custom", "name": "patch", "description": "Edits", "format": grammar},
        {"type": "namespace", "name": "mcp", "description": "d", "tools": [FUNCTION]},
        {"type": "web_search", "external_web_access": True},
    ]
    reply = client.post(URL, json={"input": "hello", "tools": tools})
    assert reply.headers["x-dflash-left-out"] == "web_search"
    whole = reply.json()
    assert [tool["type"] for tool in whole["tools"]] == ["custom", "namespace"]
    custom, function = whole["output"]
    assert (custom["type"], custom["input"]) == ("custom_tool_call", "*** Begin")
    assert (function["name"], function["namespace"]) == ("weather", "mcp")
    assert "start: LINE" in engine.prompt
    found = stream(client, tools=tools)
    assert any(e["type"] == "response.custom_tool_call_input.done" for e in found)


def test_a_conversation_as_codex_sends_it() -> None:
    client, engine = serve_texts("ok")
    items = [
        {"type": "message", "role": "developer", "content": [text("rules")]},
        {"type": "message", "role": "user", "content": [text("do it")]},
        {
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
            "encrypted_content": None,
        },
        {"type": "message", "role": "assistant", "content": [text("I will", "output_text")]},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "x"}'},
        {"type": "function_call_output", "call_id": "c", "output": "sun"},
        {"type": "custom_tool_call", "call_id": "d", "name": "patch", "input": "+a"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": [text("done")]},
        {"type": "message", "role": "developer", "content": [text("mode")]},
    ]
    ask(
        client,
        model="tiny",
        instructions="You are",
        input=items,
        tools=[FUNCTION],
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "medium", "summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="k",
        client_metadata={"a": "b"},
    )
    rest = engine.prompt.partition("<|end|>")[2]
    assert rest == (
        "<|system|>You are\n\nrules<|end|><|user|>do it<|end|>"
        "<|assistant|><think>hm</think>I will"
        '<tool_call>{"name": "weather", "arguments": {"city": "x"}}</tool_call><|end|>'
        "<|tool|>sun<|end|>"
        '<|assistant|><tool_call>{"name": "patch", "arguments": {"input": "+a"}}</tool_call><|end|>'
        "<|tool|>done<|end|><|system|>mode<|end|><|assistant|>"
    )


def text(value: str, kind: str = "input_text") -> dict[str, Any]:
    return {"type": kind, "text": value}


def test_a_failure_in_a_stream() -> None:
    client, engine = serve_texts("half")
    engine.breaks = UsageError("no more")
    last = stream(client)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["message"] == "no more"
