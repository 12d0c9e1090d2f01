"""What is refused, how it is named, and in whose words."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from dflash_mlx.errors import UsageError
from dflash_mlx.serve.app import application
from dflash_mlx.serve.served import Served

from .serving import HELLO, Scripted, agent_pair, serve_texts
from .tiny import tiny_pair

TOOL = {"type": "function", "function": {"name": "f"}}
STRICT = {"type": "function", "function": {"name": "f", "strict": True}}
FLAT = {"type": "function", "name": "f"}
IMAGE = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
NAMED = {"type": "function", "function": {"name": "f"}}
BAD_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "hat"}}}

SAMPLING: list[tuple[str, Any]] = [
    ("temperature", -1),
    ("temperature", "hot"),
    ("temperature", 1e-300),
    ("top_p", 3),
    ("top_p", 0),
    ("top_k", -2),
    ("top_k", 1.5),
    ("min_p", 2),
    ("repetition_penalty", 0),
    ("presence_penalty", 101),
    ("frequency_penalty", True),
    ("penalty_context", 0),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"1": 101}),
    ("seed", "x"),
    ("x_dflash", 1),
    ("stop", ""),
    ("stop", ["a"] * 65),
    ("stop", [1]),
    ("stream", "yes"),
    ("frobnicate", 1),
]
CHAT: list[tuple[str, Any]] = [
    *SAMPLING,
    ("n", 2),
    ("top_logprobs", 3),
    ("top_logprobs", 21),
    ("logprobs", 3),
    ("store", True),
    ("max_tokens", -1),
    ("modalities", ["audio"]),
    ("audio", {"voice": "x"}),
    ("prediction", {"type": "content", "content": "x"}),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("web_search_options", {}),
    ("verbosity", "low"),
    ("response_format", {"type": "json_schema"}),
    ("response_format", {"type": "grammar", "grammar": "x"}),
    ("response_format", BAD_SCHEMA),
    ("tool_choice", "required"),
    ("tool_choice", "any"),
    ("tool_choice", NAMED),
    ("tools", [STRICT]),
    ("tools", [{"type": "web_search"}]),
    ("tools", [{"type": "function", "function": {"name": "a b"}}]),
    ("reasoning_effort", "huge"),
    ("chat_template_kwargs", {"chat_template": "{{ 1 }}"}),
    ("stream_options", {"x": 1}),
    ("messages", []),
    ("messages", "hello"),
    ("messages", [{"role": "robot", "content": "x"}]),
    ("messages", [{"role": "user", "content": [IMAGE]}]),
    ("messages", [{"role": "user", "content": 5}]),
    ("messages", [{"role": "user", "content": "x", "images": ["y"]}]),
    ("model", "gpt-5"),
    ("model", "../../etc/passwd"),
    ("guided_json", {}),
]
TEXT: list[tuple[str, Any]] = [
    *SAMPLING,
    ("n", 2),
    ("best_of", 2),
    ("echo", True),
    ("suffix", "x"),
    ("logprobs", 6),
    ("prompt", ["a", "b"]),
    ("prompt", []),
    ("prompt", ""),
    ("prompt", [-1]),
    ("prompt", [300]),
    ("prompt", [[1], [2]]),
    ("prompt", {}),
    ("model", "x"),
]
RESPONSES: list[tuple[str, Any]] = [
    *SAMPLING,
    ("previous_response_id", "resp_1"),
    ("conversation", "conv_1"),
    ("background", True),
    ("store", True),
    ("truncation", "auto"),
    ("max_tool_calls", 1),
    ("top_logprobs", 21),
    ("prompt", {"id": "x"}),
    ("include", ["file_search_call.results"]),
    ("text", {"format": {"type": "json_schema", "name": "x"}}),
    ("text", {"verbosity": "low"}),
    ("context_management", []),
    ("tool_choice", "required"),
    ("tool_choice", FLAT),
    ("tools", [{**FLAT, "strict": True}]),
    ("tools", [{"type": "mcp", "server_url": "http://x"}]),
    ("tools", [{"type": 7}]),
    ("tools", [7]),
    ("input", []),
    ("input", [{"type": "item_reference", "id": "x"}]),
    ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
    ("input", [{"type": "reasoning", "summary": []}]),
    ("reasoning", {"effort": "huge"}),
    ("max_output_tokens", -1),
    ("model", "x"),
]
CLAUDE: list[tuple[str, Any]] = [
    ("temperature", -1),
    ("top_p", 3),
    ("top_k", -2),
    ("max_tokens", None),
    ("max_tokens", -1),
    ("stop_sequences", [""]),
    ("tool_choice", {"type": "any"}),
    ("tool_choice", {"type": "tool", "name": "f"}),
    ("tools", [{"type": "web_search_20250305", "name": "web_search"}]),
    ("tools", [{"name": "f", "input_schema": {}, "strict": True}]),
    ("thinking", {"type": "sometimes"}),
    ("output_config", {"format": {"type": "json_schema"}}),
    ("context_management", {"edits": [{"type": "clear_tool_uses_20250919"}]}),
    ("mcp_servers", [{"url": "http://x"}]),
    ("container", "c"),
    ("messages", [{"role": "user", "content": [{"type": "image", "source": {}}]}]),
    ("messages", [{"role": "user", "content": []}]),
    ("messages", []),
    ("seed", 1),
    ("model", "claude"),
]
BASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 5},
}
CASES = [
    (path, name, value)
    for path, cases in zip(BASES, (CHAT, TEXT, RESPONSES, CLAUDE), strict=True)
    for name, value in cases
]


@pytest.fixture(scope="module")
def client() -> TestClient:
    return serve_texts("ok")[0]


def message_of(reply: Any) -> str:
    return str(reply.json()["error"]["message"])


@pytest.mark.parametrize(("path", "name", "value"), CASES)
def test_a_value_is_refused_by_name(client: TestClient, path: str, name: str, value: Any) -> None:
    reply = client.post(path, json=BASES[path] | {name: value})
    assert reply.status_code == (404 if name == "model" else 400)
    named = {"messages": ("messages", "content"), "response_format": ("response_format",)}
    assert any(word in message_of(reply) for word in named.get(name, (name,)))
    if path != "/v1/messages":
        assert reply.json()["error"]["param"].startswith(name)


@pytest.mark.parametrize("path", BASES)
def test_the_base_of_these_is_served(client: TestClient, path: str) -> None:
    assert client.post(path, json=BASES[path]).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": "\xff"}',
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_bodies_that_are_no_request(client: TestClient, path: str, body: bytes) -> None:
    reply = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert message_of(reply)


def test_a_made_up_name_is_not_repeated_at_length(client: TestClient) -> None:
    body = {"messages": HELLO, "x" * 5000: 1, "a\nb": 2}
    said = message_of(client.post("/v1/chat/completions", json=body))
    assert len(said) < 300
    assert "\n" not in said


def test_two_limits() -> None:
    client, _ = serve_texts("ok")
    body = {"messages": HELLO, "max_tokens": 5, "max_completion_tokens": 6}
    assert "give one of them" in message_of(client.post("/v1/chat/completions", json=body))
    assert client.post("/v1/chat/completions", json=body | {"max_tokens": 6}).status_code == 200


@pytest.mark.parametrize(("size", "unit"), [(5000, "tokens"), (200_000, "characters")])
@pytest.mark.parametrize("path", BASES)
def test_a_prompt_that_is_too_long(client: TestClient, path: str, size: int, unit: str) -> None:
    long = "x" * size
    field = {"messages": [{"role": "user", "content": long}], "prompt": long, "input": long}
    body = {name: field.get(name, value) for name, value in BASES[path].items()}
    reply = client.post(path, json=body)
    assert reply.status_code == 400
    assert f" {unit}, the context holds 2048" in message_of(reply)


def test_what_the_engine_refuses() -> None:
    client, engine = serve_texts("ok")
    engine.error = UsageError("logit_bias names token 999; ids go from 0 to 299")
    reply = client.post("/v1/chat/completions", json={"messages": HELLO})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "logit_bias"


def test_errors_in_the_words_of_their_api(client: TestClient) -> None:
    openai = client.post("/v1/chat/completions", json={}).json()
    assert set(openai["error"]) == {"message", "type", "param", "code"}
    claude = client.post("/v1/messages", json={}).json()
    assert claude["type"] == "error"
    assert set(claude["error"]) == {"type", "message"}
    headers = {"anthropic-version": "2023-06-01"}
    assert client.get("/v1/models/none", headers=headers).json()["type"] == "error"


def test_paths_and_methods(client: TestClient) -> None:
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/v1/chat/completions").status_code == 405
    assert client.get("/v1/models/../../etc/passwd").status_code == 404
    assert client.get("/v1/models/etc/passwd").status_code == 404
    assert client.get("/v1/models/other-name").json()["id"] == "tiny"
    assert client.head("/").status_code == 200


def test_other_content_types(client: TestClient) -> None:
    body = json.dumps(BASES["/v1/chat/completions"]).encode()
    headers = {"Content-Type": "text/plain"}
    reply = client.post("/v1/chat/completions", content=body, headers=headers)
    assert reply.status_code == 415


def serve_pair(pair: Any) -> TestClient:
    engine: Any = Scripted(pair, "ok")
    return TestClient(application(Served(pair, engine, ("tiny",))))


def test_models_without_a_template_or_tools() -> None:
    client = serve_pair(tiny_pair(None))
    said = message_of(client.post("/v1/chat/completions", json={"messages": HELLO}))
    assert "has no chat template" in said
    client = serve_pair(tiny_pair())
    reply = client.post("/v1/chat/completions", json={"messages": HELLO, "tools": [TOOL]})
    assert reply.json()["error"]["param"] == "tools"


def test_a_template_that_takes_instructions_at_the_start_alone() -> None:
    picky = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
        "{% if m.content == 'no' %}{{ raise_exception('not that') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    )
    pair = agent_pair()
    pair.tokenizer.chat_template = picky
    engine: Any = Scripted(pair, "ok")
    client = TestClient(application(Served(pair, engine, ("tiny",))))
    late = [*HELLO, {"role": "system", "content": "later"}, *HELLO]
    assert client.post("/v1/chat/completions", json={"messages": late}).status_code == 200
    assert "<|user|>later<|end|>" in engine.prompt
    never = [{"role": "user", "content": "no"}]
    reply = client.post("/v1/chat/completions", json={"messages": never})
    assert reply.status_code == 400
    assert "not that" in message_of(reply)
