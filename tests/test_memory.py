"""What does not fit into memory is refused before it is begun, with what would fit."""

import re
from dataclasses import replace
from typing import Any

import pytest

from dflash_mlx.errors import UsageError
from dflash_mlx.fitting import memory_of
from dflash_mlx.footprint import DraftShape, Kept, TargetShape, heads
from dflash_mlx.generation import rounds
from dflash_mlx.kv_quantised import KVBits
from dflash_mlx.listing import UNQUANTISED, Wanted, one
from dflash_mlx.loading import load
from dflash_mlx.machine import Machine
from dflash_mlx.memory import GIB, Memory
from dflash_mlx.options import Options
from dflash_mlx.pairs import PAIRS
from dflash_mlx.session import Session
from dflash_mlx.span import Span
from dflash_mlx.targets import family_of, target_for
from dflash_mlx.tune.measure import measure

from .families import draft_config, language_model, make_pair, prompt_of, random_draft
from .reduced import CONFIGS
from .test_catalog import held
from .test_kv_quantised import model_of
from .tiny import tiny_pair

# As Qwen3-8B in 4 bits with its draft on a Mac of 32 GB.
LARGE = Memory(
    usable=22 * GIB,
    target=5 * GIB,
    draft=2 * GIB,
    shape=TargetShape((heads(36, 8, 128),)),
    context=DraftShape(5, 16, 5, (heads(5, 8, 128),)),
    heads=32,
    itemsize=2,
    draft_itemsize=2,
    fused=True,
)
MACHINE = Machine("M4 Pro", "metal", 32 * GIB, 22 * GIB)


def refusal(memory: Memory, prompt: int, answer: int = 1000) -> str:
    with pytest.raises(UsageError) as error:
        memory.check(prompt, answer)
    return str(error.value)


def test_rounds_are_measured_where_there_is_room() -> None:
    pair = tiny_pair(max_context=8192)
    for fused in (True, False):
        memory = replace(LARGE, fused=fused)
        pair.memory = replace(memory, usable=memory.need(1000, 1).total)
        assert measure(pair, (40, 4096), 1).contexts == (40,)
    pair.memory = replace(LARGE, usable=LARGE.target)
    with pytest.raises(UsageError, match="no room for a text of 40 tokens to be measured at"):
        measure(pair, (40, 4096), 1)


def test_what_fits_is_not_refused() -> None:
    LARGE.check(60_000, 1000)
    assert "need" in refusal(LARGE, 100_000)


def test_the_refusal_has_the_numbers_and_what_would_fit() -> None:
    told = refusal(LARGE, 100_000)
    assert "\n" not in told
    assert "a prompt of 100000 tokens and an answer of 1000 need" in told
    assert "weights 7.0 GiB, the target's cache 13.9 GiB, the draft's context 1.9 GiB" in told
    assert "22.0 GiB may be used" in told
    ways = told.partition("what fits: ")[2].split(", or ")
    shorter = re.fullmatch(r"a prompt of (\d+) tokens", ways[-1])
    assert shorter
    most = int(shorter[1])
    LARGE.check(most, 1000)
    assert refusal(LARGE, most + 512)


def test_every_way_that_is_named_fits_and_no_other() -> None:
    def ways(memory: Memory, prompt: int) -> list[str]:
        return refusal(memory, prompt).partition("what fits: ")[2].split(", or ")[:-1]

    assert ways(LARGE, 92_000)[0] == "--draft-window 2048"
    both = "--kv-bits 8 --draft-window 2048", "--kv-bits 4 --draft-window 2048"
    assert ways(LARGE, 110_000) == [*both, "--kv-bits 8", "--kv-bits 4"]
    assert ways(replace(LARGE, quantises=False), 110_000) == []
    eight = replace(LARGE, kv=Kept(8, 64))
    assert not any("--kv-bits 8" in way for way in ways(eight, 160_000))
    assert not any("window" in way for way in ways(replace(LARGE, span=Span(2048, 4)), 160_000))
    tiny = replace(LARGE, usable=2 * GIB)
    assert refusal(tiny, 10).endswith("what fits: a smaller model or --bits 4")


def test_attention_that_holds_its_scores_counts() -> None:
    """Two arrays in float32, of a chunk of the prompt that is narrower the longer the prompt."""
    other = replace(LARGE, fused=False)
    assert other.need(5000, 4000).peak == 2 * 4 * 32 * 512 * 4000
    assert other.chunk(512, 4000) == 512
    assert other.chunk(512, 40_000) == 104
    assert other.need(41_000, 40_000).peak == 2 * 4 * 32 * 104 * 40_000 <= GIB
    assert other.chunk(512, 10**6) == 16
    assert LARGE.need(41_000, 40_000).peak == 0
    assert LARGE.chunk(512, 10**6) == 512


@pytest.mark.parametrize(
    ("kv", "span"), [(None, None), (KVBits(8, 32), Span(300, 5)), (KVBits(4, 32), None)], ids=str
)
def test_caches_take_what_is_estimated(kv: KVBits | None, span: Span | None) -> None:
    config = draft_config()
    draft = random_draft(config.with_span(span) if span else config)
    pair = make_pair("llama", draft)
    target = target_for(model_of("llama"), draft.config.taps)
    pair.target = target.with_kv(kv) if kv else target
    memory = memory_of(pair.target, draft, CONFIGS["llama"] | {"head_dim": 32}, MACHINE)
    assert memory is not None
    session = Session(pair.target, draft)
    list(rounds(pair, prompt_of(1100), Options(max_tokens=4), session))
    need = memory.need(1104, 1100)
    assert held(session.cache) == need.cache
    assert session.context is not None
    if span is None:
        assert held(session.context) == need.context
    else:  # rows come in chunks, and not all of the prompt's
        assert need.context is not None
        assert 0.5 * need.context < held(session.context) <= need.context


def test_generations_are_checked_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = make_pair("llama", random_draft(draft_config()))
    pair.memory = replace(LARGE, usable=8 * GIB)
    monkeypatch.setattr(Session, "prefill", lambda *_, **__: pytest.fail("was begun"))
    with pytest.raises(UsageError, match="a prompt of 20 tokens and an answer of 4076 need"):
        list(rounds(pair, prompt_of(20), Options(max_tokens=10_000)))


def test_a_loaded_pair_knows_what_it_takes() -> None:
    pair = load(kv_bits=8, draft_window=128)
    memory = pair.memory
    assert memory is not None
    assert (memory.kv, memory.span) == (Kept(8, 64), Span(128, 4))
    assert memory.target > 500 * 2**20  # in float32
    assert (memory.heads, memory.fused, memory.quantises) == (9, False, True)
    done = list(rounds(pair, pair.encode("The capital of France is"), Options(max_tokens=8)))
    assert "Paris" in pair.tokenizer.decode([t for r in done for t in r.tokens])


def test_configs_that_say_too_little_refuse_nothing() -> None:
    pair = make_pair("llama", None)
    assert memory_of(pair.target, None, {}, MACHINE) is None


def test_listed_memory_follows_the_bits() -> None:
    def cache(name: str, kv: Kept | None) -> int:
        return one(name).memory(Wanted(32768, kv=kv), MACHINE).cache

    full, eight = cache("Qwen3-8B", None), cache("Qwen3-8B", Kept(8, 64))
    assert eight / full == pytest.approx((1 + 4 / 64) / 2)
    assert "--kv-bits 8" in one("Qwen3-8B").command(Wanted(4096, kv=Kept(8, 64)))
    assert cache("gpt-oss-20b", Kept(8, 64)) == cache("gpt-oss-20b", None)
    assert "--kv-bits" not in one("gpt-oss-20b").command(Wanted(4096, kv=Kept(8, 64)))


REDUCED: dict[str, Any] = {"gemma4_unified": "gemma4-unified"}


def test_families_without_bits_are_those_of_the_targets() -> None:
    for family in {known.family for known in PAIRS}:
        family_of(family, family)
        target = target_for(language_model(REDUCED.get(family, family)))
        assert (target.unquantised is not None) == (family in UNQUANTISED), family
