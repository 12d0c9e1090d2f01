"""Answers that are held to a schema or to a call, and log-probabilities, with a real engine."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from starlette.testclient import TestClient

from dflash_mlx.engine import Engine
from dflash_mlx.serve.app import application
from dflash_mlx.serve.guides import grammar_of, schema_of
from dflash_mlx.serve.refusal import Refused
from dflash_mlx.serve.served import Served
from dflash_mlx.serve.wanted import Tool

from .serving import HELLO, WEATHER, agent_pair, events, in_letters, listening, serve_texts

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer"}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
CALL = {
    "type": "object",
    "properties": {"city": {"enum": ["Kyiv", "Lviv"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": CALL}},
    {"type": "function", "function": {"name": "news", "parameters": CALL}},
]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    pair = agent_pair()
    with Engine(pair) as engine:
        yield Served(pair, engine, ("tiny",), in_letters(pair, 200))


@pytest.fixture(scope="module")
def client(served: Served) -> TestClient:
    return TestClient(application(served))


@pytest.fixture(scope="module")
def url(served: Served) -> Iterator[str]:
    # The engine is the fixture's: it must outlive this server.
    pair = agent_pair()
    with Engine(pair) as engine, listening(Served(pair, engine, ("tiny",), served.defaults)) as at:
        yield at


def check(text: str) -> None:
    value = json.loads(text)
    assert value["colour"] in ("red", "green")
    assert isinstance(value["count"], int)


@pytest.mark.parametrize("temperature", [0, 1])
def test_schemas_with_the_official_clients(url: str, temperature: float) -> None:
    messages: Any = HELLO
    bound = {"colour": {"enum": ["red", "green"]}, "count": {"enum": [1, 20, 300]}}
    schema: Any = SCHEMA | {"properties": bound}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        form: Any = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}
        reply = client.chat.completions.create(
            model="tiny", messages=messages, response_format=form, temperature=temperature, seed=1
        )
        check(reply.choices[0].message.content or "")
        assert reply.choices[0].finish_reason == "stop"
        flat: Any = {"format": {"type": "json_schema", "name": "c", "schema": schema}}
        answer = client.responses.create(
            model="tiny",
            input="hello",
            text=flat,
            temperature=temperature,
            reasoning={"effort": "none"},  # drawn at random, thoughts need not end in time
        )
        check(answer.output_text)
        assert answer.status == "completed"
    with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as claude:
        config: Any = {"format": {"type": "json_schema", "schema": schema}}
        message = claude.messages.create(
            model="tiny", messages=messages, max_tokens=200, output_config=config
        )
    assert message.content[0].type == "text"
    check(message.content[0].text)


def test_any_json_object(client: TestClient) -> None:
    body = {"messages": HELLO, "response_format": {"type": "json_object"}, "max_tokens": 30}
    reply = client.post(CHAT, json=body | {"logit_bias": {}}).json()
    assert reply["choices"][0]["message"]["content"].lstrip().startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "news"}}])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_is_forced(client: TestClient, choice: Any, streamed: bool) -> None:
    body = {"messages": HELLO, "tools": TOOLS, "tool_choice": choice, "stream": streamed}
    reply = client.post(CHAT, json=body | {"parallel_tool_calls": False})
    assert reply.status_code == 200, reply.text
    if streamed:
        found = [c["choices"][0] for c in events(reply.text)]
        parts = [p for c in found for p in c["delta"].get("tool_calls", [])]
        name = parts[0]["function"]["name"]
        arguments = "".join(p["function"]["arguments"] for p in parts)
        reason = found[-1]["finish_reason"]
    else:
        answer = reply.json()["choices"][0]
        (call,) = answer["message"]["tool_calls"]
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        reason = answer["finish_reason"]
    assert name in (("weather", "news") if choice == "required" else ("news",))
    assert json.loads(arguments)["city"] in ("Kyiv", "Lviv")
    assert reason == "tool_calls"


def test_a_call_is_forced_in_the_other_apis(client: TestClient) -> None:
    flat = {"type": "function", "name": "weather", "parameters": CALL}
    body = {"input": "hello", "tools": [flat], "tool_choice": "required"}
    reply = client.post("/v1/responses", json=body | {"parallel_tool_calls": False}).json()
    assert [item["type"] for item in reply["output"]] == ["function_call"]
    tool = {"name": "weather", "input_schema": CALL}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    claude = {"messages": HELLO, "max_tokens": 200, "tools": [tool], "tool_choice": choice}
    reply = client.post("/v1/messages", json=claude).json()
    assert [block["type"] for block in reply["content"]] == ["tool_use"]
    assert reply["stop_reason"] == "tool_use"


def test_what_cannot_be_forced() -> None:
    client, _ = serve_texts("x", parser="xml")
    body = {"messages": HELLO, "tools": TOOLS, "tool_choice": "required"}
    said = client.post(CHAT, json=body).json()["error"]
    assert said["param"] == "tool_choice"
    assert "does not write its calls as JSON" in said["message"]
    form = {"response_format": {"type": "json_object"}}
    said = client.post(CHAT, json={"messages": HELLO, "tools": TOOLS, **form}).json()["error"]
    assert said["param"] == "response_format"
    none = {"messages": HELLO, "tools": TOOLS, "tool_choice": "none", **form}
    assert client.post(CHAT, json=none).status_code == 200
    named = {"tool_choice": {"type": "function", "function": {"name": "other"}}}
    assert client.post(CHAT, json=body | named).status_code == 400


def test_thinking_comes_before_the_answer_if_asked_for(client: TestClient, served: Served) -> None:
    """What ends is valid, whatever was thought; without being asked nothing is thought."""
    words = served.pair.tokenizer
    form = {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}
    bias = {str(words.think_start_id): 100, str(words.think_end_id): 100}
    body = {"messages": HELLO, "max_tokens": 200, "temperature": 1.0, **form}
    thought = 0
    for seed in range(4):
        asked = {"seed": seed, "logit_bias": bias}
        asked["chat_template_kwargs"] = {"enable_thinking": True}
        choice = client.post(CHAT, json=body | asked).json()["choices"][0]
        if choice["finish_reason"] == "stop":
            check(choice["message"]["content"])
            thought += bool(choice["message"].get("reasoning_content"))
    assert thought
    message = client.post(CHAT, json=body | {"logit_bias": bias}).json()["choices"][0]["message"]
    assert not message.get("reasoning_content")


def test_a_template_that_always_thinks() -> None:
    client, engine = serve_texts("x")
    engine.pair.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<think>{% endif %}"
    )
    body = {"messages": HELLO, "response_format": {"type": "json_object"}}
    assert client.post(CHAT, json=body).status_code == 200
    thinking = engine.asked[-1][1].thinking
    assert thinking is not None and thinking.opened


def test_definitions_of_tools_are_put_together() -> None:
    def tool(name: str, what: str) -> Tool:
        point = {"$ref": "#/$defs/P"}
        parameters = {"type": "object", "properties": {"p": point}, "$defs": {"P": {"type": what}}}
        return Tool(name, {"parameters": parameters})

    schema = schema_of([tool("a", "string"), tool("b", "string")])
    assert schema["$defs"] == {"P": {"type": "string"}}
    assert "$defs" not in schema["anyOf"][0]["properties"]["arguments"]
    with pytest.raises(Refused, match="define P in different ways"):
        schema_of([tool("a", "string"), tool("b", "integer")])


def test_the_grammar_of_one_call_and_of_several() -> None:
    tokenizer = agent_pair().tokenizer
    tools = [Tool("weather", {"parameters": WEATHER})]
    assert grammar_of(tokenizer, tools, several=False).startswith("start: one\n")
    assert "(" in grammar_of(tokenizer, tools, several=True).splitlines()[0]


def test_logprobs(client: TestClient) -> None:
    body = {"messages": HELLO, "max_tokens": 5, "logprobs": True, "top_logprobs": 2}
    choice = client.post(CHAT, json=body).json()["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(one["token"] for one in tokens) == choice["message"]["content"]
    for one in tokens:
        assert one["logprob"] <= 0
        assert one["bytes"] == list(one["token"].encode())
        # Greedy: the token is the most probable one.
        assert one["top_logprobs"][0]["token"] == one["token"]
        assert len(one["top_logprobs"]) == 2
    chunks = events(client.post(CHAT, json=body | {"stream": True}).text)
    known = [c["choices"][0]["logprobs"] for c in chunks]
    assert [one for part in known if part for one in part["content"]] == tokens


def test_logprobs_of_the_other_apis(client: TestClient) -> None:
    body: dict[str, Any] = {"prompt": "abc", "max_tokens": 4, "logprobs": 1}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    found = choice["logprobs"]
    assert "".join(found["tokens"]) == choice["text"]
    assert found["text_offset"] == [0, 1, 2, 3]
    assert found["top_logprobs"][0] == {found["tokens"][0]: found["token_logprobs"][0]}
    streamed = events(client.post("/v1/completions", json=body | {"stream": True}).text)
    parts = [c["logprobs"] for k in streamed for c in k["choices"]]
    assert [offset for part in parts for offset in part["text_offset"]] == [0, 1, 2, 3]
    body = {"input": "hello", "max_output_tokens": 4, "top_logprobs": 1}
    (item,) = client.post("/v1/responses", json=body).json()["output"]
    (part,) = item["content"]
    assert "".join(one["token"] for one in part["logprobs"]) == part["text"]


def test_logprobs_are_of_the_answer_alone() -> None:
    client, engine = serve_texts("<think>", "hm", "</think>", "yes")
    engine.logprobs = True
    body = {"messages": HELLO, "logprobs": True}
    choice = client.post(CHAT, json=body).json()["choices"][0]
    assert "".join(one["token"] for one in choice["logprobs"]["content"]) == "yes"
