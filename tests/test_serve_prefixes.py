"""Where the next prompt of a conversation leaves the one before, what is known of it is kept."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from dflash_mlx.engine import Engine
from dflash_mlx.loading import Pair
from dflash_mlx.prefix.cache import PrefixCache
from dflash_mlx.prefix.tree import common
from dflash_mlx.serve.app import application
from dflash_mlx.serve.prompt import prepare
from dflash_mlx.serve.served import Served
from dflash_mlx.serve.wanted import Wanted
from dflash_mlx.targets import target_for

from .families import draft_config, random_draft
from .reduced import CONFIGS, make
from .serving import in_letters
from .tiny import MASK_ID, VOCAB, tokenizer

# Shows what was thought since the last question, as Qwen's and others do.
DROPPING = (
    "{% set last = namespace(question=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m.reasoning_content and loop.index0 > last.question %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TURN: list[dict[str, Any]] = [
    {"role": "user", "content": "what does the file say about the weather in the capital?"},
    {"role": "assistant", "content": "one moment", "reasoning_content": "I have to read it " * 4},
    {"role": "user", "content": "go on"},
]
CALL = {"id": "c", "type": "function", "function": {"name": "read", "arguments": "{}"}}


def pair_of(family: str, module: str) -> Pair:
    """A pair whose caches cannot be cut everywhere, with words for a conversation."""
    words = tokenizer(DROPPING, thinking=True)
    model = make(CONFIGS[family] | {"vocab_size": VOCAB}, module)
    draft = random_draft(draft_config(vocab_size=VOCAB, mask_token_id=MASK_ID, block_size=4))
    target, ends = target_for(model, draft.config.taps), frozenset(words.eos_token_ids)
    return Pair(target, draft, words, ends, 4096, "tiny", "tiny-dflash")


def asked(client: TestClient, messages: list[dict[str, Any]], count: int = 3) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were known."""
    body = {"messages": messages, "max_tokens": count}
    reply = client.post("/v1/chat/completions", json=body).json()
    known = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    return reply["choices"][0]["message"]["content"], known


@pytest.mark.parametrize(
    ("family", "module"), [("llama-sliding", "llama"), ("qwen3_next", "qwen3_next")]
)
def test_a_template_that_drops_earlier_thinking(family: str, module: str) -> None:
    """With the next question, and with a tool's result before it."""
    pair = pair_of(family, module)
    options = in_letters(pair)

    def ids(messages: list[dict[str, Any]]) -> list[int]:
        return list(prepare(pair, Wanted(options, messages=messages)).ids)

    thought = {"role": "assistant", "content": "", "reasoning_content": "which file was it " * 6}
    called = {**thought, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c", "content": "it rains"}
    loop = [*TURN, called, result]
    prefixes = PrefixCache(pair)
    with Engine(pair, prefixes=prefixes) as engine:
        served = Served(pair, engine, ("tiny",), options, prefixes=prefixes)
        client = TestClient(application(served), base_url="http://localhost")
        # An answer so long that marks before it would be thinned out.
        answer, _ = asked(client, loop, 400)
        later = [*loop, called, result]
        _, known = asked(client, later)
        assert known == common(ids(loop), ids(later)) > len(ids(loop)) - 16
        question = [*loop, {"role": "assistant", "content": answer}, TURN[2]]
        _, known = asked(client, question)
        assert known == common(ids(loop), ids(question)) < len(ids(loop)) - 100


def test_places_are_looked_for_only_where_they_count() -> None:
    pair = pair_of("llama", "llama")
    with Engine(pair) as engine:
        assert not Served(pair, engine, ("tiny",), prefixes=PrefixCache(pair)).marks
        assert not Served(pair, engine, ("tiny",)).marks
    wanted = Wanted(in_letters(pair), messages=TURN)
    assert prepare(pair, wanted).stable == ()
    (place,) = prepare(pair, wanted, stable=True).stable
    assert place == len(prepare(pair, wanted).ids)
