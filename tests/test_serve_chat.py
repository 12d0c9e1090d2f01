"""What OpenAI's chat and text APIs make of an answer, from an engine that says what it is told."""

import json
from typing import Any

import pytest

from dflash_mlx.errors import Busy, UsageError

from .serving import HELLO, JSON_CALL, WEATHER, XML_CALL, events, serve_texts

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
CHAT = "/v1/chat/completions"


def ask(client: Any, **body: Any) -> Any:
    reply = client.post(CHAT, json={"messages": HELLO, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def stream(client: Any, **body: Any) -> list[Any]:
    reply = client.post(CHAT, json={"messages": HELLO, "stream": True, **body})
    assert reply.status_code == 200, reply.text
    return events(reply.text)


def deltas(chunks: list[Any], name: str) -> str:
    found = [c["choices"][0]["delta"].get(name) for c in chunks if c["choices"]]
    return "".join(text for text in found if text)


def test_an_answer() -> None:
    client, engine = serve_texts("good ", "day")
    reply = ask(client)
    assert reply["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "good day", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert engine.prompt == "<|user|>hello<|end|><|assistant|>"
    usage = reply["usage"]
    assert usage["prompt_tokens"] == len(engine.asked[0][0])
    assert usage["total_tokens"] == usage["prompt_tokens"] + 9
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] == 1
    assert usage["completion_tokens_details"]["rejected_prediction_tokens"] == 2
    assert "x_dflash" not in reply


def test_a_stream_says_the_same() -> None:
    client, _ = serve_texts("good ", "day")
    chunks = stream(client)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert deltas(chunks, "content") == "good day"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


def test_usage_in_a_stream() -> None:
    client, _ = serve_texts("good")
    chunks = stream(client, stream_options={"include_usage": True}, x_dflash=True)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert chunks[-1]["x_dflash"]["rounds"] == 0
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_statistics_when_asked() -> None:
    client, _ = serve_texts("good ", "day")
    assert ask(client, x_dflash=True)["x_dflash"]["tokens_per_round"] == 4
    assert stream(client, x_dflash=True)[-1]["x_dflash"]["accepted"] == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_thinking_is_apart(streamed: bool) -> None:
    client, _ = serve_texts("<think>\nwell", " then</thi", "nk>\n\nyes")
    if streamed:
        chunks = stream(client)
        found = deltas(chunks, "reasoning_content"), deltas(chunks, "content")
    else:
        message = ask(client)["choices"][0]["message"]
        found = message["reasoning_content"], message["content"]
    assert found == ("well then", "yes")


@pytest.mark.parametrize(("parser", "call"), [("json", JSON_CALL), ("xml", XML_CALL)])
@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_tool_call(parser: str, call: str, cut: int) -> None:
    text = f"let me see\n{call}"
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
    client, engine = serve_texts(*pieces, parser=parser)
    choice = ask(client, tools=TOOLS)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "let me see\n"
    (made,) = choice["message"]["tool_calls"]
    assert made["function"]["name"] == "weather"
    assert json.loads(made["function"]["arguments"]) == {"city": "Kyiv", "days": 2}
    assert '"weather"' in engine.prompt
    chunks = stream(client, tools=TOOLS)
    parts = [c for k in chunks for c in k["choices"][0]["delta"].get("tool_calls", [])]
    assert parts[0]["id"]
    assert "".join(p["function"]["arguments"] for p in parts) == made["function"]["arguments"]


@pytest.mark.parametrize(("parser", "call"), [("json", JSON_CALL), ("xml", XML_CALL)])
def test_arguments_are_streamed_before_their_end(parser: str, call: str) -> None:
    text = call[: call.index("days") + 4]
    client, engine = serve_texts(*text, parser=parser)
    engine.breaks = UsageError("enough")
    chunks = [c for c in stream(client, tools=TOOLS) if "choices" in c]
    parts = [c for k in chunks for c in k["choices"][0]["delta"].get("tool_calls", [])]
    assert "".join(p["function"]["arguments"] for p in parts).startswith('{"city": "Kyiv"')


def test_several_calls_and_one() -> None:
    client, engine = serve_texts(JSON_CALL + "\n" + JSON_CALL, "\n")
    choice = ask(client, tools=TOOLS)["choices"][0]
    assert choice["message"]["content"] is None
    assert len(choice["message"]["tool_calls"]) == 2
    choice = ask(client, tools=TOOLS, parallel_tool_calls=False)["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"
    assert engine.tickets[-1].cancelled


def test_what_is_no_call_stays_text() -> None:
    client, _ = serve_texts("<tool_call>nonsense</tool_call>")
    message = ask(client, tools=TOOLS)["choices"][0]["message"]
    assert message["content"] == "<tool_call>nonsense</tool_call>"
    assert "tool_calls" not in message


def test_without_tools_markers_are_text() -> None:
    client, _ = serve_texts(JSON_CALL)
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        assert ask(client, **more)["choices"][0]["message"]["content"] == JSON_CALL


def test_a_tool_conversation_is_rendered() -> None:
    client, engine = serve_texts("ok")
    call = {"name": "weather", "arguments": '{"city": "Kyiv"}'}
    said = {"role": "assistant", "content": None, "reasoning_content": "hm"}
    said["tool_calls"] = [{"id": "1", "type": "function", "function": call}]  # type: ignore
    result = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "sun"}]}
    system = [{"role": "system", "content": "be"}, {"role": "developer", "content": "brief"}]
    ask(client, messages=[*system, *HELLO, said, result], tools=TOOLS)
    assert engine.prompt.endswith(
        "<|system|>be\n\nbrief<|end|><|user|>hello<|end|><|assistant|><think>hm</think><tool_call>"
        '{"name": "weather", "arguments": {"city": "Kyiv"}}</tool_call><|end|>'
        "<|tool|>sun<|end|><|assistant|>"
    )


def test_options_reach_the_engine() -> None:
    client, engine = serve_texts("ok")
    ask(
        client,
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        penalty_context=64,
        logit_bias={"7": -5},
        seed=2**32 + 9,
        stop="END",
        max_completion_tokens=33,
    )
    options = engine.asked[0][1]
    sampling = options.sampling
    assert (options.max_tokens, options.stop, options.seed) == (33, ("END",), 9)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 0)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.2, 0.3)
    assert (sampling.penalty_context, sampling.logit_bias) == (64, ((7, -5.0),))


@pytest.mark.parametrize(
    "more",
    [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}],
)
def test_thinking_can_be_turned_off(more: dict[str, Any]) -> None:
    client, engine = serve_texts("ok")
    ask(client, **more)
    assert engine.prompt.endswith("<think></think>")


def test_the_server_decides_where_a_request_does_not() -> None:
    client, engine = serve_texts("ok", think=False)
    ask(client)
    assert engine.prompt.endswith("<think></think>")
    ask(client, reasoning_effort="high")
    assert not engine.prompt.endswith("<think></think>")


def test_what_clients_send_besides_is_accepted() -> None:
    client, _ = serve_texts("ok")
    ask(
        client,
        model="OTHER-name",
        user="u",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        n=1,
        logprobs=False,
        parallel_tool_calls=True,
        response_format={"type": "text"},
        safety_identifier="s",
        prompt_cache_key="k",
        stream=None,
        tools=None,
        tool_choice="auto",
        verbosity=None,
    )


def test_an_error_in_a_stream() -> None:
    client, engine = serve_texts("half")
    engine.breaks = RuntimeError("a bug with a secret")
    last = stream(client)[-1]
    assert last["error"]["type"] == "server_error"
    assert "secret" not in last["error"]["message"]
    assert client.post(CHAT, json={"messages": HELLO}).status_code == 500


def test_an_answer_that_just_stops() -> None:
    client, engine = serve_texts("half")
    engine.breaks = OSError("no space left")
    assert "error" in stream(client)[-1]
    engine.holds, engine.breaks = True, None
    engine.vanishes = True
    assert stream(client)[-1]["error"]["type"] == "server_error"


def test_a_full_queue() -> None:
    client, engine = serve_texts("x")
    engine.error = Busy("full", 2.4)
    reply = client.post(CHAT, json={"messages": HELLO, "stream": True})
    assert reply.status_code == 429
    assert reply.headers["retry-after"] == "3"
    assert reply.json()["error"]["type"] == "rate_limit_error"


def test_text_completions() -> None:
    client, engine = serve_texts("<think>as it ", "is")
    body = {"prompt": "Once", "x_dflash": True}
    reply = client.post("/v1/completions", json=body).json()
    assert reply["choices"][0]["text"] == "<think>as it is"
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["x_dflash"]["rounds"] == 1
    assert engine.asked[0][1].max_tokens == 16
    assert engine.prompt == "Once"
    options = {"include_usage": True}
    body |= {"stream": True, "stream_options": options, "prompt": [1, 2, 3]}  # type: ignore
    chunks = events(client.post("/v1/completions", json=body).text)
    assert "".join(c["text"] for k in chunks for c in k["choices"]) == "<think>as it is"
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert engine.asked[1][0] == [1, 2, 3]
