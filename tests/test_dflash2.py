"""DFlash 2's selector: the path it takes, and that what is sampled from it is exact."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from dflash_mlx.accept import accept_sampled
from dflash_mlx.config import SLIDING, DFlash2, DraftConfig
from dflash_mlx.drafts import dflash2, draft_for
from dflash_mlx.drafts.dflash2 import DFlash2Draft
from dflash_mlx.drafts.shortlist import Shortlist
from dflash_mlx.generation import generate, rounds
from dflash_mlx.kernels.candidate_path import Path as Walk
from dflash_mlx.kernels.candidate_path import candidate_path_reference
from dflash_mlx.kv import Scalar, State
from dflash_mlx.loading import load
from dflash_mlx.options import Options
from dflash_mlx.sampling import Sampling, log_distribution

from .families import (
    HIDDEN,
    VOCAB,
    draft_config,
    make_pair,
    plain_ids,
    prompt_of,
    random_draft,
)
from .test_accept import chi_square
from .test_loading import DRAFT, TARGET, write_target

EXTRA = DFlash2(conv_kernel_size=2, conv_group_size=16, selector_rank=8, selector_top_k=4)
CONFIG = draft_config(
    dflash2=EXTRA, block_size=4, layer_types=(SLIDING, SLIDING), sliding_window=2048
)
TOKENS, PLACES, DRAWS = 8, 3, 200_000
ANCHOR = mx.array([5], mx.int32)
FILTERS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.3, "min_p": 0.2},
]


def selecting(vocab: int = TOKENS, vocabulary: int | None = None) -> DFlash2Draft:
    """A draft whose codebooks matter as much as the logits below."""
    mx.random.seed(2)
    config = draft_config(vocab_size=vocab, mask_token_id=vocab - 1, dflash2=EXTRA)
    draft = DFlash2Draft(config, vocabulary)
    for book in ("predecessor_codebook", "successor_codebook"):
        codebook = draft.candidate_selector[book]
        codebook.weight = mx.random.normal(codebook.weight.shape)
    draft.prepare()
    return draft


def rows(vocab: int = TOKENS) -> tuple[mx.array, mx.array]:
    """Hidden states [PLACES, HIDDEN] and logits [PLACES, vocab]."""
    a, b = mx.random.split(mx.random.key(4))
    return mx.random.normal((PLACES, HIDDEN), key=a), mx.random.normal((PLACES, vocab), key=b)


def shortened(vocab: int = TOKENS) -> tuple[mx.array, Shortlist]:
    """The same with the largest logits alone."""
    hidden, logits = rows(vocab)
    ids = mx.argsort(-logits, axis=-1)[:, :4].astype(mx.int32)
    return hidden, Shortlist(ids, mx.take_along_axis(logits, ids, axis=-1))


GIVEN = pytest.mark.parametrize("given", [rows, shortened])


def score(draft: DFlash2Draft, place: int, before: int, behind: int) -> float:
    """The definition, for one pair of tokens."""
    selector = draft.candidate_selector
    hidden, logits = rows(draft.config.vocab_size)
    weight = np.array(selector.hidden_projection.weight) @ np.array(hidden[place])
    a = np.array(selector.predecessor_codebook.weight[before])
    b = np.array(selector.successor_codebook.weight[behind])
    return float(np.array(logits)[place, behind] + (a * weight * b).sum())


def best(place: int, vocab: int = TOKENS) -> list[int]:
    """The candidates at a place."""
    return list(np.argsort(np.array(rows(vocab)[1][place]))[-4:])


@GIVEN
def test_the_greedy_path_takes_the_best_candidate_each_time(given: Callable[[], Any]) -> None:
    draft, before, wanted = selecting(), 5, []
    for place in range(PLACES):
        before = max(best(place), key=lambda b: score(draft, place, before, b))
        wanted.append(before)
    drafted, logq, _ = draft.propose(*given(), ANCHOR, Sampling(), mx.random.key(0))
    assert drafted.tolist() == wanted
    assert logq is None
    assert wanted != mx.argmax(rows()[1], axis=-1).tolist(), "the codebooks had no say"


def probabilities(draft: DFlash2Draft, place: int, before: int, temperature: float) -> np.ndarray:
    """q [TOKENS] at a place, written from the definition."""
    q = np.zeros(TOKENS)
    for token in best(place):
        q[token] = np.exp(score(draft, place, before, token) / temperature)
    return q / q.sum()


def propose(draft: DFlash2Draft, sampling: Sampling) -> Callable[[mx.array], Any]:
    return lambda key: draft.propose(*rows(), ANCHOR, sampling, key)


@GIVEN
def test_q_is_the_distribution_behind_the_token_before(given: Callable[[], Any]) -> None:
    draft, sampling = selecting(), Sampling(temperature=0.7)
    for seed in range(30):
        drafted, logq, _ = draft.propose(*given(), ANCHOR, sampling, mx.random.key(seed))
        path = [5, *drafted.tolist()]
        for place in range(PLACES):
            wanted = probabilities(draft, place, path[place], 0.7)
            assert np.allclose(np.exp(np.array(logq[place])), wanted, atol=1e-5)


def test_whole_paths_are_drawn_from_q() -> None:
    """All paths, so that no token depends on one before it in any other way than q says."""
    draft = selecting()
    keys = mx.random.split(mx.random.key(9), DRAWS)
    drafted, *_ = mx.vmap(propose(draft, Sampling(temperature=1.0)))(keys)
    counts = np.bincount(
        np.array(drafted) @ np.array([TOKENS**2, TOKENS, 1]), minlength=TOKENS**PLACES
    )
    probs = np.zeros(TOKENS**PLACES)
    for a, first in enumerate(probabilities(draft, 0, 5, 1.0)):
        for b, second in enumerate(probabilities(draft, 1, a, 1.0)):
            third = probabilities(draft, 2, b, 1.0)
            probs[(a * TOKENS + b) * TOKENS :][:TOKENS] = first * second * third
    assert (counts > 0).sum() > 40
    assert chi_square(counts, probs) < 5


def worst_score(setting: dict[str, Any]) -> float:
    """Tokens that come out of whole rounds against the target's distribution, at every place.

    The target ignores its history, so the token at place i has distribution p_i in every round
    that gets that far.
    """
    sampling = Sampling(**setting)
    logits = 0.7 * mx.random.normal((PLACES + 1, TOKENS), key=mx.random.key(1))
    logp = log_distribution(logits, sampling)
    run = propose(selecting(), sampling)

    def one(key: mx.array) -> mx.array:
        draft_key, accept_key = mx.random.split(key)
        drafted, logq, _ = run(draft_key)
        return accept_sampled(drafted, logq, logp, accept_key)

    done = np.array(mx.vmap(one)(mx.random.split(mx.random.key(11), DRAWS)))
    scores = []
    for place in range(PLACES + 1):
        reached = done[done[:, 0] >= place]
        probs = np.exp(np.array(logp[place], np.float64))
        if len(reached) > 500 and (probs > 0).sum() > 1:
            counts = np.bincount(reached[:, 1 + place], minlength=TOKENS)
            scores.append(chi_square(counts, probs / probs.sum()))
    assert len(scores) >= 3
    return max(scores)


@pytest.mark.parametrize("setting", FILTERS, ids=str)
def test_what_comes_out_is_exact(setting: dict[str, Any]) -> None:
    assert worst_score(setting) < 5


def q_behind_the_anchor(scores: mx.array, ids: mx.array, noise: mx.array) -> Walk:
    return candidate_path_reference(scores, ids, noise)._replace(rows=scores[:, 0])


def q_behind_the_token_itself(scores: mx.array, ids: mx.array, noise: mx.array) -> Walk:
    found = candidate_path_reference(scores, ids, noise)
    own = mx.take_along_axis(scores, found.places[:, None, None], axis=1)[:, 0]
    return found._replace(rows=own)


@pytest.mark.parametrize("wrong", [q_behind_the_anchor, q_behind_the_token_itself])
def test_wrong_rows_of_q_are_noticed(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dflash2, "path", lambda *_, **__: wrong)
    assert worst_score(FILTERS[0]) > 8


def test_padding_of_the_head_is_never_a_candidate() -> None:
    """Rows behind the tokenizer's last id, with the largest logits of all."""
    hidden, logits = rows(TOKENS + 8)
    logits[:, TOKENS:] += 100
    for setting in ({"temperature": 0.0}, {"temperature": 1.0}):
        for vocabulary, expected in ((TOKENS, True), (None, False)):
            draft = selecting(TOKENS + 8, vocabulary)
            drafted, logq, _ = draft.propose(
                hidden, logits, ANCHOR, Sampling(**setting), mx.random.key(0)
            )
            assert all((token < TOKENS) is expected for token in drafted.tolist())
            assert logq is None or logq.shape == (PLACES, TOKENS + 8)


def test_loading_asks_the_tokenizer_what_is_padding(tmp_path: Path) -> None:
    rows_of_head = 320
    folder = write_target(tmp_path / "target", vocab_size=rows_of_head)
    model = llama.Model(llama.ModelArgs.from_dict({**TARGET, "vocab_size": rows_of_head}))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    raw = {**DRAFT, "vocab_size": rows_of_head, "architectures": ["DFlash2DraftModel"]}
    raw["dflash_config"] = {**raw["dflash_config"], **asdict(EXTRA)}
    network = draft_for(DraftConfig.from_dict(raw, "config"))
    stored = {
        name.removesuffix(".weight") if "codebook" in name else name: tensor
        for name, tensor in tree_flatten(network.parameters())
    }
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "config.json").write_text(json.dumps(raw))
    mx.save_safetensors(str(tmp_path / "draft" / "model.safetensors"), stored)
    pair = load(str(folder), str(tmp_path / "draft"), quiet=True)
    assert isinstance(pair.draft, DFlash2Draft)
    assert pair.draft.candidate_selector._vocabulary == len(pair.tokenizer.get_vocab()) < 300
    assert generate(pair, [1, 2], Options(max_tokens=9)) == generate(
        pair, [1, 2], Options(max_tokens=9, speculate=False)
    )


def test_fewer_tokens_than_candidates() -> None:
    drafted, *_ = selecting(TOKENS, 2).propose(*rows(), ANCHOR, Sampling(), mx.random.key(0))
    assert set(drafted.tolist()) <= {0, 1}


def test_context_rows_are_not_convolved() -> None:
    """The context is that of a DFlash 1 draft with the same weights."""
    second = draft_for(CONFIG).prepare()
    first = random_draft(draft_config(layer_types=(SLIDING, SLIDING), sliding_window=2048))
    names = {"candidate_selector", "attention_conv", "mlp_conv"}
    shared = second.parameters()
    shared.pop("candidate_selector")
    for layer in shared["layers"]:
        for name in names & layer.keys():
            layer.pop(name)
    first.update(shared)
    first.prepare()
    features = mx.random.normal((1, 9, 2 * HIDDEN), key=mx.random.key(1))
    states = [d.extend(features, 0, d.new_cache().state) for d in (first, second)]
    for a, b in zip(*(s["layers"] for s in states), strict=True):
        assert all(mx.array_equal(x, y).item() for x, y in zip(a, b, strict=True))


# Whole generations


class Scripted(DFlash2Draft):
    """Proposes the true continuation in all blocks, wrong at a chosen place."""

    def __init__(self, truth: list[int], wrong: int) -> None:
        super().__init__(CONFIG)
        self._truth = mx.array([*truth, *[0] * 64], mx.int32)
        self._wrong = wrong
        self._start: Scalar = 0
        self.prepare()

    def forward(self, block: mx.array, start: Scalar, state: State) -> tuple[mx.array, State]:
        self._start = start
        return super().forward(block, start, state)

    def shape_logits(self, logits: mx.array) -> mx.array:
        places = mx.arange(logits.shape[1])
        tokens = self._truth[self._start + 1 + places]
        tokens = mx.where(places == self._wrong, (tokens + 1) % VOCAB, tokens)
        return mx.where(mx.arange(VOCAB) == tokens[:, None], 1e3, 0.0)[None] + 0 * logits


PROMPT = prompt_of(20)


def generated(draft: DFlash2Draft, **options: Any) -> tuple[list[int], set[int]]:
    """Ids, and the numbers of accepted tokens of all rounds but the first and the last."""
    done = list(rounds(make_pair("qwen3", draft), PROMPT, Options(max_tokens=60, **options)))
    return [t for r in done for t in r.tokens], {r.accepted for r in done[1:-1]}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("accepted", range(4))
def test_greedy_text_is_the_targets_own(compiled: bool, accepted: int) -> None:
    wanted = plain_ids("qwen3", PROMPT, 60)
    ids, seen = generated(Scripted(PROMPT + wanted, accepted), compiled=compiled)
    assert ids == wanted
    assert seen == {accepted}


@pytest.mark.parametrize("block", [2, 3, 4, 7])
def test_blocks_of_any_width(block: int) -> None:
    draft = DFlash2Draft(CONFIG)
    draft.prepare()
    assert generated(draft, block=block)[0] == plain_ids("qwen3", PROMPT, 60)


def test_compiled_rounds_draw_the_same() -> None:
    draft = DFlash2Draft(CONFIG)
    draft.prepare()
    sampling = Sampling(temperature=1.1, top_p=0.9)
    runs = [
        generated(draft, sampling=sampling, seed=s, compiled=c)
        for s, c in ((3, False), (3, True), (4, False))
    ]
    assert runs[0] == runs[1] != runs[2]
