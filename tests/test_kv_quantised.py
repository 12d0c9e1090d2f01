"""Keys and values in 8 and 4 bits: the text is that of plain decoding with the same bits."""

from copy import deepcopy
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache

from dflash_mlx.engine import Engine, EngineOptions
from dflash_mlx.engine.memory import size_of
from dflash_mlx.errors import UnsupportedError, UsageError
from dflash_mlx.generation import rounds
from dflash_mlx.kv_quantised import KVBits
from dflash_mlx.loading import Pair
from dflash_mlx.options import AUTO, Options
from dflash_mlx.session import Session
from dflash_mlx.span import Span
from dflash_mlx.stats import Stats
from dflash_mlx.targets import target_for

from .choosers import Script, scripted
from .families import (
    ScriptedDraft,
    draft_config,
    language_model,
    make_pair,
    prompt_of,
    random_draft,
)
from .reduced import CONFIGS, MODULES, WINDOW, make
from .test_catalog import held
from .test_kv import address, kept_rows
from .test_lossless import always, ids_of, in_turn
from .tiny import tokenizer

EIGHT, FOUR = KVBits(8, 32), KVBits(4, 32)
COUNT = 28
WIDE = ("llama", "llama-sliding", "qwen3_moe", "qwen3_next", "qwen3_5", "minimax_m2", "glm4")
OTHERS = ("gemma4", "muse_glimmer", "qwen2", "glm4_moe")


@cache
def model_of(family: str) -> Any:
    """The reduced model with heads as large as a group."""
    config = deepcopy(CONFIGS[family])
    text = config.get("text_config", config)
    text |= {"head_dim": 32} | ({"global_head_dim": 64} if "global_head_dim" in text else {})
    if family == "qwen2":  # has no field for it
        text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 64}
    model = make(config, MODULES.get(family, config["model_type"]))
    mx.eval(model.parameters())
    return model


def pair_of(family: str, kv: KVBits, draft: Any = None) -> Pair:
    pair = make_pair("llama", draft)
    taps = draft.config.taps if draft else ()
    pair.target = target_for(model_of(family), taps).with_kv(kv)
    return pair


@cache
def truth(family: str, kv: KVBits, length: int, count: int = COUNT) -> tuple[list[int], list[int]]:
    """A prompt, and what plain decoding with the same bits makes of it."""
    prompt = prompt_of(length, seed=1)
    return prompt, ids_of(list(rounds(pair_of(family, kv), prompt, Options(max_tokens=count))))


def scripted_pair(family: str, kv: KVBits, length: int, block: int, wrong: Any) -> Pair:
    prompt, text = truth(family, kv, length)
    size = 64 if family == "qwen2" else 48
    config = draft_config(block_size=block, hidden_size=size)
    return pair_of(family, kv, ScriptedDraft(config, prompt + text, wrong))


@pytest.mark.parametrize("kv", [EIGHT, FOUR], ids=str)
def test_plain_decoding_is_mlx_lms_with_the_same_bits(kv: KVBits) -> None:
    prompt, text = truth("llama", kv, 24)
    model = model_of("llama")
    stock = [QuantizedKVCache(kv.group, kv.bits) for _ in make_prompt_cache(model)]
    ids: list[int] = []
    for chunk in (prompt, *([0] for _ in text)):
        logits = model(mx.array([chunk if chunk is prompt else ids[-1:]]), cache=stock)
        ids.append(int(mx.argmax(logits[0, -1]).item()))
    assert ids[:COUNT] == text
    plain = ids_of(list(rounds(_unquantised("llama"), prompt, Options(max_tokens=COUNT))))
    assert kv.bits == 8 or plain != text, "4 bits change nothing: are they used?"


def _unquantised(family: str) -> Pair:
    pair = make_pair("llama", None)
    pair.target = target_for(model_of(family))
    return pair


@pytest.mark.parametrize("family", ["llama-sliding", "qwen3_5"])
def test_every_acceptance_in_every_block(family: str) -> None:
    for index, (block, accepted) in enumerate([(b, a) for b in (2, 4, 7) for a in range(b)]):
        length, kv = (1, 7, WINDOW + 3, 40)[index % 4], (EIGHT, FOUR)[index % 2]
        prompt, text = truth(family, kv, length)
        pair = scripted_pair(family, kv, length, block, always(accepted))
        done = list(rounds(pair, prompt, Options(max_tokens=COUNT)))
        assert ids_of(done) == text, (block, accepted, length)
        assert {r.accepted for r in done[1:-1]} == {accepted}


@pytest.mark.parametrize("family", [*WIDE, *OTHERS])
def test_families(family: str) -> None:
    prompt, text = truth(family, EIGHT, 24)
    pair = scripted_pair(family, EIGHT, 24, 8, in_turn(24, 8))
    done = list(rounds(pair, prompt, Options(max_tokens=COUNT)))
    assert ids_of(done) == text
    assert len({r.accepted for r in done}) > 4


def test_changing_widths_copies_and_rests() -> None:
    prompt, text = truth("qwen3_5", EIGHT, 24)
    pair = scripted_pair("qwen3_5", EIGHT, 24, 8, in_turn(24, 8))
    with scripted(Script((8, 1, 0, 3, 5), copies=(0, 4, 0))):
        options = Options(max_tokens=COUNT, block=AUTO, lookup="on")
        assert ids_of(list(rounds(pair, prompt, options))) == text


def test_compiled_rounds() -> None:
    prompt, text = truth("llama-sliding", EIGHT, 24)
    pair = scripted_pair("llama-sliding", EIGHT, 24, 4, in_turn(24, 4))
    done = list(rounds(pair, prompt, Options(max_tokens=COUNT, compiled=True)))
    assert ids_of(done) == text


def test_long_text_grows_and_slides() -> None:
    prompt, text = truth("llama-sliding", FOUR, 300, 420)
    draft = ScriptedDraft(draft_config(), prompt + text, in_turn(300, 8))
    pair = pair_of("llama-sliding", FOUR, draft)
    session = Session(pair.target, pair.draft)
    assert ids_of(list(rounds(pair, prompt, Options(max_tokens=420), session))) == text
    slots = [layer[0].shape[2] for layer in session.cache.state["layers"]]
    assert slots == [768] * 4
    assert session.cache.state["base"] == [0, 256]
    assert all(len(layer) == 6 for layer in session.cache.state["layers"])


def test_a_session_goes_back_to_any_length() -> None:
    prompt, text = truth("llama", EIGHT, 24)
    pair = pair_of("llama", EIGHT)
    session = Session(pair.target, None)
    list(rounds(pair, prompt, Options(max_tokens=30), session))
    for cut in (20, 11, 3):
        stats = Stats()
        again = rounds(pair, prompt + text[:cut], Options(max_tokens=8), session, stats)
        assert ids_of(list(again)) == text[cut : cut + 8]
        assert stats.cached_tokens == 24 + cut - 1


def test_rows_are_written_in_place() -> None:
    prompt, _ = truth("llama", EIGHT, 24)
    pair = scripted_pair("llama", EIGHT, 24, 8, always(5))
    session = Session(pair.target, pair.draft)
    places = []
    for _ in rounds(pair, prompt, Options(max_tokens=COUNT), session):
        places.append([address(a.view(mx.uint8)) for a in kept_rows(session)])
    assert len(places) > 4
    assert all(place == places[1] for place in places[2:])


def test_memory_is_what_the_bits_say() -> None:
    pair = pair_of("llama", EIGHT)
    session = Session(pair.target, None)
    session.prefill(prompt_of(20), chunk=64)
    layer = session.cache.state["layers"][0]
    elements = 2 * 2 * 256 * 32  # keys and values, heads, slots, head
    assert sum(a.nbytes for a in layer) == elements + elements // 32 * 2 * 4


def test_families_that_cannot_are_refused_by_name() -> None:
    for family, word in (
        ("gpt_oss", "gpt_oss: keys and values cannot be quantised, as mlx-lm's attention"),
        ("deepseek_v3", "deepseek_v3: .*latents"),
        ("glm_moe_dsa", "glm_moe_dsa: .*latents"),
        ("kimi_k25", "kimi_k25: .*latents"),
        ("gemma4-shared", "gemma4: .*those of others"),
    ):
        with pytest.raises(UnsupportedError, match=word):
            target_for(language_model(family)).with_kv(EIGHT)


def test_groups_that_fit_no_head_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--kv-bits 8 in groups of 64 does not fit .* llama"):
        target_for(model_of("llama")).with_kv(KVBits(8))


@pytest.mark.parametrize(
    ("bits", "group", "words"), [(5, 64, "kv bits is 5"), (8, 16, "kv group size is 16")]
)
def test_what_mlx_cannot_is_refused(bits: int, group: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        KVBits(bits, group)


def test_a_wrong_scale_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are quantised anew when others are added, say, would change the text."""
    prompt, text = truth("llama", EIGHT, 24)
    pack = KVBits.pack

    def sloppy(self: KVBits, rows: mx.array) -> list[mx.array]:
        packed, scales, biases = pack(self, rows)
        return [packed, scales * (1 + 0.02 * (rows.shape[2] > 1)), biases]

    monkeypatch.setattr(KVBits, "pack", sloppy)
    pair = scripted_pair("llama", EIGHT, 24, 8, always(5))
    assert ids_of(list(rounds(pair, prompt, Options(max_tokens=COUNT)))) != text


def test_rows_are_quantised_each_by_itself() -> None:
    rows = mx.random.normal((1, 2, 5, 64), key=mx.random.key(0))
    whole = KVBits(4).pack(rows)
    single = [KVBits(4).pack(rows[:, :, i : i + 1]) for i in range(5)]
    for part, ones in zip(whole, zip(*single, strict=True), strict=True):
        assert np.array_equal(np.array(part), np.array(mx.concatenate(list(ones), axis=2)))


def test_an_engine_takes_turns_and_knows_the_size() -> None:
    """Passes of several texts attend to keys and values in full; so these are not shared."""
    pair = pair_of("llama", EIGHT, random_draft(draft_config().with_span(Span(64, 2))))
    pair.tokenizer = tokenizer()
    assert not pair.target.batches
    assert not pair.target.with_kernels(pair.kernels).batches
    asked = [prompt_of(n, seed=5) for n in (20, 33, 41)]
    wanted = Options(max_tokens=12)
    with Engine(pair, EngineOptions()) as engine:
        tickets = [engine.submit(prompt, wanted) for prompt in asked]
        for ticket, prompt in zip(tickets, asked, strict=True):
            done = [token for response in ticket for token in response.tokens]
            assert done == ids_of(list(rounds(pair, prompt, wanted)))
    session = Session(pair.target, pair.draft)
    list(rounds(pair, prompt_of(900), Options(max_tokens=4), session))
    assert session.context is not None
    assert size_of(pair).bytes(904) >= held(session.cache) + held(session.context)
    assert size_of(pair).bytes(904) < 1.3 * (held(session.cache) + held(session.context))
