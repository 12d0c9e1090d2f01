"""Who may ask, from where, how much; the log and the figures."""

import asyncio
from typing import Any

import pytest
from starlette.testclient import TestClient

from dflash_mlx.serve.guard import Desk, name_of
from dflash_mlx.serve.served import Access, Limits, Line, names_of

from .serving import HELLO, serve_texts
from .tiny import tiny_pair

CHAT = "/v1/chat/completions"
PATHS = ["/v1/models", "/metrics", "/openapi.json", "/", "/v1/nothing"]


@pytest.fixture(scope="module")
def keyed() -> TestClient:
    return serve_texts("ok", access=Access(keys=("one", "two")))[0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer three"},
        {"Authorization": "Basic one"},
        {"Authorization": "Bearer"},
        {"Authorization": "one"},
        {"x-api-key": "on"},
        {"x-api-key": ""},
        {"x-api-key": "\xe9".encode("latin-1")},
    ],
)
def test_without_the_key(keyed: TestClient, path: str, headers: Any) -> None:
    reply = keyed.get(path, headers=headers)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": "Bearer one"}, {"authorization": "bearer two"}, {"x-api-key": "two"}],
)
def test_with_the_key(keyed: TestClient, headers: Any) -> None:
    assert keyed.get("/v1/models", headers=headers).status_code == 200
    assert keyed.post(CHAT, json={"messages": HELLO}, headers=headers).status_code == 200


def test_what_needs_no_key(keyed: TestClient) -> None:
    assert keyed.get("/health").json() == {"status": "ok"}
    reply = keyed.post("/v1/messages", json={})
    assert reply.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8080", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8080", 200),
        ("127.0.0.1:80", 200),
        ("evil.com", 403),
        ("localhost.evil.com", 403),
        ("localhost@evil.com", 403),
        ("127.0.0.1.evil.com:8080", 403),
        ("", 403),
    ],
)
def test_hosts(host: str, status: int) -> None:
    access = Access(hosts=("localhost", "127.0.0.1", "[::1]"))
    client, _ = serve_texts("ok", access=access)
    assert client.get("/health", headers={"Host": host}).status_code == status


def test_the_name_in_a_host() -> None:
    assert name_of("[::1]:8080") == "[::1]"
    assert name_of("A.b:1") == "a.b"
    assert name_of("a") == "a"


def test_pages_of_other_origins() -> None:
    client, _ = serve_texts("ok")
    page = {"Origin": "https://page.example"}
    for origin, status in (("https://page.example", 403), ("null", 403), ("http://localhost", 200)):
        reply = client.post(CHAT, json={"messages": HELLO}, headers={"Origin": origin})
        assert reply.status_code == status
        assert "access-control-allow-origin" not in reply.headers
    asks = page | {"Access-Control-Request-Method": "POST"}
    assert client.options(CHAT, headers=asks).status_code == 403
    access = Access(keys=("k",), origins=("https://page.example",))
    client, _ = serve_texts("ok", access=access)
    assert client.options(CHAT, headers=asks).headers["access-control-allow-origin"]
    assert client.options(CHAT, headers=asks | {"Origin": "https://x"}).status_code == 403
    reply = client.post(CHAT, json={"messages": HELLO}, headers=page)
    assert reply.status_code == 401
    assert reply.headers["access-control-allow-origin"] == "https://page.example"


def test_the_limit_of_a_body() -> None:
    client, engine = serve_texts("ok", limits=Limits(body=200))
    long = {"messages": [{"role": "user", "content": "x" * 300}]}
    reply = client.post(CHAT, json=long)
    assert reply.status_code == 413
    reply = client.post("/v1/messages", content=(b"x" * 50 for _ in range(9)))
    assert reply.status_code == 413
    assert reply.json()["error"]["type"] == "request_too_large"
    assert client.post(CHAT, json={"messages": HELLO}).status_code == 200
    assert len(engine.asked) == 1


def test_a_body_that_does_not_come() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    async def never(*_: Any) -> None:
        raise AssertionError

    from dflash_mlx.serve.app import refuse

    desk = Desk(never, Access(), Limits(body_s=0.01), refuse)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(desk(scope, receive, send))
    assert sent[0]["status"] == 408


def test_the_log() -> None:
    lines: list[Line] = []
    client, _ = serve_texts("good ", "day", report=lines.append)
    client.post(CHAT, json={"messages": HELLO})
    client.get("/no%0Awhere")
    answered, lost = lines
    assert (answered.method, answered.path, answered.status) == ("POST", CHAT, 200)
    assert answered.answer is not None
    assert answered.answer["generated_tokens"] == 9
    assert (lost.status, lost.answer) == (404, None)
    assert "\n" not in lost.path


def test_figures() -> None:
    client, _ = serve_texts("good ", "day")
    client.post(CHAT, json={"messages": HELLO})
    client.get("/x" * 9)
    text = client.get("/metrics").text
    assert 'dflash_requests_total{path="/v1/chat/completions",status="200"} 1.0' in text
    assert 'dflash_requests_total{path="other",status="404"} 1.0' in text
    assert "dflash_first_token_seconds_count 1.0" in text
    assert "dflash_tokens_per_round_sum 4.0" in text
    assert "dflash_running 0.0" in text
    assert 'model="tiny"' in text


def test_two_servers_count_apart() -> None:
    first, _ = serve_texts("x")
    second, _ = serve_texts("x")
    first.post(CHAT, json={"messages": HELLO})
    assert 'status="200"' not in second.get("/metrics").text


def test_names() -> None:
    pair = tiny_pair()
    pair.name = "mlx-community/Qwen3-4B-4bit"
    names = names_of(pair, "models/q", ("gpt",))
    assert names == ("Qwen3-4B", "mlx-community/Qwen3-4B-4bit", "q", "models/q", "gpt")


def test_the_description_has_every_path() -> None:
    client, _ = serve_texts("x")
    document = client.get("/openapi.json").json()
    assert {p for p in document["paths"] if "post" in document["paths"][p]} == {
        CHAT,
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
    }
