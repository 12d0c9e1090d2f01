"""Guides: what is refused, and which tokens a grammar allows."""

import json
import random
import sys
from typing import Any

import pytest

from dflash_mlx.embedded import embedded_target
from dflash_mlx.errors import UnsupportedError, UsageError
from dflash_mlx.guide import Guide, Matcher, words_of

from .guides import EOS, ids_allowed, tokenizer, words

SCHEMA = {
    "type": "object",
    "properties": {"ab": {"type": "boolean"}, "x": {"type": "string", "maxLength": 5}},
    "required": ["ab", "x"],
    "additionalProperties": False,
}


def spelled(ids: list[int]) -> list[str]:
    return sorted(tokenizer().decode([i]) for i in ids)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guide.json_schema("{"), "the schema is not valid JSON: Expecting"),
        (lambda: Guide.json_schema("[]"), "the schema is not a JSON object"),
        (lambda: Guide.json_schema({"type": "objec"}), "cannot be used: Invalid type: objec"),
        (lambda: Guide.json_schema({"not": {}}), r'cannot be used: Unimplemented keys: \["not"\]'),
        (lambda: Guide.regex("a("), "regex parse error: a.* unclosed group"),
        (lambda: Guide.lark("start: x"), 'cannot be used: .*unknown name: "x"'),
        (lambda: Guide.choice([]), "no texts to choose from"),
        (lambda: Guide.choice("ab"), "no texts to choose from"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_a_line(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        make()
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_what_a_lenient_schema_leaves_out_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    schema = {"type": "string", "format": "knitting"}
    with pytest.raises(UsageError, match="Unknown format: knitting"):
        Guide.json_schema(schema)
    Guide.json_schema(schema | {"x-guidance": {"lenient": True}})
    assert "guide: Unknown format: knitting" in caplog.text


def test_llguidance_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match=r"pip install '\.\[guided\]'"):
        Guide.json_object()


def test_other_tokenizers_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UnsupportedError, match="written in Python"):
        words_of(Slow(), 64, frozenset([1]))


def test_a_choice_leaves_what_its_texts_begin_with() -> None:
    matcher = Matcher(Guide.choice(["abc", "axe", "x"]), words())
    assert spelled(ids_allowed(matcher)) == ["a", "ab", "x"]
    assert matcher.forced() == []
    matcher.take(tokenizer().encode("ab")[0])
    assert matcher.forced() == tokenizer().encode("c")
    matcher.take(matcher.forced()[0])
    assert matcher.ended and matcher.forced() == []
    matcher.back(2)
    assert not matcher.ended and spelled(ids_allowed(matcher)) == ["a", "ab", "x"]


def test_a_text_may_end_only_where_the_grammar_does() -> None:
    matcher = Matcher(Guide.regex("a{2,}"), words())
    (a,) = tokenizer().encode("a")
    seen = []
    for _ in range(4):
        seen.append(ids_allowed(matcher))
        matcher.take(a)
    assert seen == [[a], [a], [a, EOS], [a, EOS]]
    matcher.take(EOS)
    assert matcher.ended
    with pytest.raises(UsageError, match="the guide cannot go on"):
        Matcher(Guide.regex("a"), words()).take(EOS)


def test_compact_json_forces_more() -> None:
    forced = Matcher(Guide.json_schema(SCHEMA, compact=True), words()).forced()
    assert tokenizer().decode(forced) == '{"ab":'
    loose = Matcher(Guide.json_schema(json.dumps(SCHEMA)), words())
    assert spelled(ids_allowed(loose)) == ["{", '{"']


@pytest.mark.parametrize("seed", range(20))
def test_blanks_between_the_parts_end(seed: int) -> None:
    """A walk that takes a blank wherever it may still gets to the end."""
    matcher, taken = Matcher(Guide.json_schema(SCHEMA), words()), []
    blank = tokenizer().encode(" ")[0]
    choose = random.Random(seed)
    while not matcher.ended:
        allowed = ids_allowed(matcher)
        taken.append(blank if blank in allowed else choose.choice(allowed))
        matcher.take(taken[-1])
        assert len(taken) < 100
    assert set(json.loads(tokenizer().decode(taken))) == {"ab", "x"}


@pytest.mark.slow
def test_the_embedded_tokenizer_spells_json() -> None:
    from mlx_lm.tokenizer_utils import load

    real = load(embedded_target(quiet=True))
    matcher = Matcher(Guide.json_schema(SCHEMA, compact=True), words_of(real, 49152, {2}))
    text = '{"ab":false,"x":"h i"}'
    ids = real.encode(text)
    assert real.decode(matcher.forced()) == '{"ab":'
    for token in ids:
        assert not matcher.ended
        matcher.take(token)
    assert matcher.ended
