"""The first stage: prompts, and answers that are the target's own, a batch at a time."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from dflash_mlx.errors import UsageError
from dflash_mlx.sampling import Sampling
from dflash_mlx.targets import target_for
from dflash_mlx.train import batch
from dflash_mlx.train import generate as stage
from dflash_mlx.train.batch import Answer, answer, repeated
from dflash_mlx.train.features import Features, compute, index, measure, store, stored_bytes
from dflash_mlx.train.generate import generate, read_texts
from dflash_mlx.train.packing import pack
from dflash_mlx.train.prompts import Asked, read_prompts
from dflash_mlx.train.settings import DataSettings

from .families import FAMILIES, draft_config, language_model, plain_text, prompt_of
from .tiny import tiny_pair
from .training import plain_pair, texts

GREEDY = Sampling()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_answers_as_each_text_alone(family: str) -> None:
    """Prompts of different lengths, and answers that end at different places."""
    prompts = [prompt_of(length, seed=length) for length in (5, 9, 6, 20)]
    alone = [plain_text(family, p, 14) for p in prompts]
    eos = frozenset({alone[0][0][4], alone[2][0][7]})
    expected = []
    for text, _ in alone:
        end = next((i for i, t in enumerate(text) if t in eos), None)
        expected.append(text if end is None else text[: end + 1])
    assert min(margin for _, margin in alone) > 1e-4
    target = target_for(language_model(family))
    found = (
        answer(target, prompts, 14, GREEDY, eos, 0)
        if target.batches
        else [answer(target, [p], 14, GREEDY, eos, 0)[0] for p in prompts]
    )
    assert [list(a.ids) for a in found] == expected
    assert [a.reason == "stop" for a in found] == [a.ids[-1] in eos for a in found]


def test_sampled_answers_follow_the_seed() -> None:
    target = target_for(language_model("llama"))
    prompts = [prompt_of(5, seed=1)] * 4

    def sampled(seed: int) -> list[Any]:
        return answer(target, prompts, 8, Sampling(temperature=1.0), frozenset(), seed)

    assert sampled(1) == sampled(1) != sampled(2)
    assert len({a.ids for a in sampled(1)}) > 1


def test_a_loop_is_cut_behind_its_first_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeated([9, 1, 2, 3] + [5, 6] * 16) == 2
    assert repeated([9, 1, 2, 3] + [5, 6] * 15) == 0
    assert repeated(list(range(40)) * 4) == 40
    assert repeated(list(range(400))) == 0
    target = target_for(language_model("llama"))
    script = iter([1, 2, 3, *[5, 6, 7] * 40])
    monkeypatch.setattr(batch, "choose", lambda *_: mx.array([next(script)]))
    (found,) = answer(target, [prompt_of(5)], 80, GREEDY, frozenset(), 0)
    assert found == Answer((1, 2, 3, 5, 6, 7, 5, 6, 7), "loop")


def asked(count: int) -> list[Asked]:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    return [Asked((("user", " ".join(words[: 1 + i % 7]) + str(i)),)) for i in range(count)]


SETTINGS = DataSettings("", max_tokens=6, batch=4)


def test_a_killed_generation_goes_on(tmp_path: Path) -> None:
    pair = tiny_pair(draft=False)
    prompts = asked(10)
    *_, last = generate(pair, prompts, SETTINGS, tmp_path / "whole")
    assert (last.done, last.total, sum(last.reasons.values())) == (10, 10, 10)
    run = generate(pair, prompts, SETTINGS, tmp_path / "killed")
    first = next(run).done
    run.close()
    (tmp_path / "killed" / ".answers-half.npz").write_bytes(b"left by a kill")
    tallies = list(generate(pair, prompts, SETTINGS, tmp_path / "killed"))
    assert len(tallies) == 2 and tallies[0].done > first and tallies[-1].done == 10
    assert said(tmp_path / "killed") == said(tmp_path / "whole")
    assert list(generate(pair, prompts, SETTINGS, tmp_path / "killed")) == []


def said(folder: Path) -> list[Any]:
    return [(t.document.key, t.document.ids.tolist(), t.reason) for t in read_texts(folder)]


def test_what_was_said_before_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny_pair(draft=False)
    same = [Answer((1, 2, 3), "stop")]
    monkeypatch.setattr(stage, "answer", lambda _, prompts, *rest: same * len(prompts))
    list(generate(pair, asked(6), SETTINGS, tmp_path))
    assert len(read_texts(tmp_path)) == 1
    assert list(generate(pair, asked(6), SETTINGS, tmp_path)) == []


def test_prompts_go_through_the_chat_template(tmp_path: Path) -> None:
    pair = tiny_pair(draft=False)
    list(generate(pair, asked(1), SETTINGS, tmp_path))
    (text,) = read_texts(tmp_path)
    prompt = pair.tokenizer.decode(text.document.ids[: text.document.answer].tolist())
    assert prompt == "<|user|>alpha0<|end|><|assistant|>"


def test_prompts_of_every_kind_of_file(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "left out"},
    ]
    lines = ['"a"', json.dumps({"messages": messages}), json.dumps({"prompt": "a"}), ""]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    found = read_prompts(tmp_path / "p.jsonl")
    assert [a.messages for a in found] == [(("user", "a"),), (("system", "s"), ("user", "b"))]
    (tmp_path / "p.txt").write_text("a\n\n b \n")
    assert [a.messages[0][1] for a in read_prompts(tmp_path / "p.txt")] == ["a", "b"]
    entries = [{"prompt": "a", "kind": "k", "split": "ood"}, {"prompt": "b", "split": "train"}]
    (tmp_path / "p.json").write_text(json.dumps(entries))
    listed = read_prompts(tmp_path / "p.json")
    assert [(a.kind, a.held_out(0.0)) for a in listed] == [("k", True), ("", False)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", "{"),
        ("p.jsonl", '{"text": "a"}'),
        ("p.jsonl", '{"prompt": " "}'),
        ("p.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}'),
        ("p.jsonl", '{"messages": ["a"]}'),
        ("p.json", '{"prompt": "a"}'),
        ("p.txt", " \n"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=r"p\."):
        read_prompts(tmp_path / name)


def test_the_split_is_decided_by_the_prompt_alone() -> None:
    many = [Asked((("user", str(i)),)) for i in range(2000)]
    held = {a.key for a in many if a.held_out(0.1)}
    assert 150 < len(held) < 250
    assert held == {a.key for a in reversed(many) if replace(a, kind="x").held_out(0.1)}
    assert held < {a.key for a in many if a.held_out(0.2)}


def test_stored_features_are_those_computed(tmp_path: Path) -> None:
    target = plain_pair(draft_config()).target
    documents = texts(3)
    scale = measure(Features(target), documents)
    steps = list(store(target, documents[:2], tmp_path))
    assert steps == [(2, 2)]
    assert list(store(target, documents, tmp_path)) == [(1, 1)]
    assert index(tmp_path).keys() == {"0", "1", "2"}
    anchors = [np.array([7], np.int32)] * 3
    blocks = pack(documents, anchors, 4, 63)
    stored = Features(target, tmp_path).scaled(scale, blocks)
    fresh = Features(target).scaled(scale, blocks)
    assert stored.dtype == mx.float32
    assert mx.allclose(stored, fresh, rtol=2**-7, atol=1e-6).item()
    files = sum(f.stat().st_size for f in tmp_path.glob("texts-*"))
    assert stored_bytes(target, documents) <= files < stored_bytes(target, documents) + 2000
    rows = mx.concatenate([compute(target, d)[d.answer :] for d in documents])
    assert mx.allclose(mx.sqrt(mx.mean(rows * rows, axis=0)), scale, rtol=1e-4).item()
