"""The packed loss against the same blocks one by one through the decoding path."""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from dflash_mlx.config import DraftConfig
from dflash_mlx.drafts import draft_for
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.drafts.dflash2 import DFlash2Draft
from dflash_mlx.targets import target_for
from dflash_mlx.targets.base import Target
from dflash_mlx.train.forward import hidden_states
from dflash_mlx.train.heads import Competition, DraftHead
from dflash_mlx.train.loss import Weighting, blocks_at_once
from dflash_mlx.train.objective import Objective
from dflash_mlx.train.packing import Document, Pack, choose_anchors, pack

from .families import CONFIGS, HIDDEN, MASK_ID, VOCAB, draft_config, language_model
from .reduced import make
from .test_drafts import VARIANTS

ANCHORS = (np.array([4, 6, 11, 29], np.int32), np.array([3, 17], np.int32))


def documents() -> list[Document]:
    random = np.random.default_rng(5)
    lengths = ((31, 4), (20, 3))
    return [
        Document(random.integers(0, MASK_ID, size).astype(np.int32), answer)
        for size, answer in lengths
    ]


def network(config: DraftConfig) -> DFlashDraft:
    mx.random.seed(11)
    draft = draft_for(config)
    # What starts as zeros or ones would hide that it is left out.
    draft.update(
        {
            "hidden_norm": {"weight": 1 + 0.3 * mx.random.normal((config.hidden_size,))},
            "norm": {"weight": 1 + 0.3 * mx.random.normal((config.hidden_size,))},
        }
    )
    if isinstance(draft, DFlash2Draft):
        for layer in draft.layers:
            for conv in (layer.attention_conv, layer.mlp_conv):
                conv.base_kernel = mx.random.normal(conv.base_kernel.shape)
    mx.eval(draft.parameters())
    return draft


def target_of(config: DraftConfig) -> Target:
    return target_for(language_model("llama"), config.taps)


def features_of(target: Target, pack_: Pack) -> mx.array:
    made = []
    for document in pack_.documents:
        cache = target.new_cache()
        state = cache.begin(0, len(document.ids), fixed=False)
        made.append(target.forward(mx.array(document.ids)[None], 0, state)[1][0])
    return mx.concatenate(made)


def packed(config: DraftConfig, texts: list[Document] | None = None) -> Pack:
    return pack(texts or documents(), ANCHORS, config.block_size, config.mask_token_id)


def objective(target: Target, **changes: Any) -> Objective:
    fields: dict[str, Any] = {"weighting": Weighting(), "logits_bytes": 1 << 30}
    return Objective(target, **(fields | changes))


def flat(tree: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(tree))


def one_by_one(
    draft: DFlashDraft, target: Target, pack_: Pack, features: mx.array, weighting: Weighting
) -> tuple[mx.array, dict[str, mx.array]]:
    """Loss and gradient with `extend` and `forward`, as decoding calls them, a block at a time."""
    config, size = draft.config, draft.config.block_size

    def block_loss(text: Document, rows: mx.array, anchor: int) -> mx.array:
        context = draft.new_cache()
        context.reserve(anchor)
        context.state = draft.extend(rows[None, :anchor], 0, context.state)
        context.commit(anchor)
        ids = mx.array([int(text.ids[anchor]), *[config.mask_token_id] * (size - 1)])
        state = context.begin(anchor, size, fixed=False)
        hidden, _ = draft.forward(target.embed_block(ids[None]), anchor, state)
        count = min(size - 1, len(text.ids) - 1 - anchor)
        logits = draft.shape_logits(target.head(hidden[:, 1:]))[0, :count]
        labels = mx.array(text.ids[anchor + 1 : anchor + 1 + count])
        losses = nn.losses.cross_entropy(logits, labels)
        weights = weighting.weights(losses[None], mx.ones((1, count), mx.bool_))
        total = (weights[0] * losses).sum()
        if isinstance(draft, DFlash2Draft):
            total = total + selected(draft, hidden[0, 1:][:count], logits, ids[:1], labels, weights)
        return total

    def selected(
        draft: DFlash2Draft, hidden: Any, logits: Any, first: Any, labels: Any, weights: Any
    ) -> mx.array:
        # The selector scores all candidates before with all behind; the true one stands in.
        selector, before = draft.candidate_selector, mx.concatenate([first, labels[:-1]])
        total = mx.array(0.0)
        for row in range(len(labels)):
            ids, scores = selector(
                hidden[row : row + 1], mx.stop_gradient(logits[row : row + 1]), before[row][None]
            )
            found = ids[0].tolist()
            if labels[row].item() in found:
                line = scores[0, 0]
                lost = mx.logsumexp(line) - line[found.index(labels[row].item())]
                total = total + weights[0, row] * lost
        return total

    def run(parameters: Any) -> mx.array:
        draft.update(parameters)
        draft.prepare()
        total, token = mx.array(0.0), 0
        for text, anchors in zip(pack_.documents, ANCHORS, strict=True):
            rows = features[token : token + len(text.ids)]
            token += len(text.ids)
            total = total + sum(block_loss(text, rows, int(a)) for a in anchors)
        return total

    parameters = draft.parameters()
    loss, gradients = mx.value_and_grad(run)(parameters)
    draft.update(parameters)
    return loss, flat(gradients)


@pytest.mark.parametrize("save_memory", [False, True])
@pytest.mark.parametrize("kind", ["exponential", "dpace"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_those_of_single_blocks(variant: str, kind: str, save_memory: bool) -> None:
    config = draft_config(**VARIANTS[variant])
    draft, target, batch = network(config), target_of(config), packed(config)
    features, weighting = features_of(target, batch), Weighting(kind)
    loss, expected = one_by_one(draft, target, batch, features, weighting)
    aim = objective(target, weighting=weighting, save_memory=save_memory)
    measured, gradients = aim.gradients(draft, batch, DraftHead(target), features, 0.5)
    found = flat(gradients)
    assert measured.loss.item() == pytest.approx(0.5 * loss.item(), rel=1e-4)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        size = mx.abs(value).max().item()
        assert mx.abs(2 * found[name] - value).max().item() <= 1e-3 * size + 1e-5, name
        assert size > 0, name


def test_logits_in_pieces_change_nothing() -> None:
    config = draft_config()
    draft, target, batch = network(config), target_of(config), packed(config)
    features = features_of(target, batch)
    whole = objective(target).gradients(draft, batch, DraftHead(target), features, 1.0)
    rows = config.block_size - 1
    small = 2 * 8 * 4 * VOCAB * rows
    assert blocks_at_once(small, VOCAB, rows) == 2
    pieces = objective(target, logits_bytes=small)
    again = pieces.gradients(draft, batch, DraftHead(target), features, 1.0)
    for a, b in zip(whole[0], again[0], strict=True):
        assert mx.allclose(a, b, rtol=1e-5).item()
    for name, value in flat(whole[1]).items():
        assert mx.allclose(value, flat(again[1])[name], rtol=1e-4, atol=1e-6).item()


@pytest.mark.parametrize("variant", ["full", "sliding, causal", "dflash 2"])
def test_a_block_sees_nothing_from_its_anchor_on(variant: str) -> None:
    """Other tokens behind the anchor change no hidden state, though the features change."""
    config = draft_config(**VARIANTS[variant])
    draft, target = network(config), target_of(config)
    texts = documents()

    def hidden(texts: list[Document]) -> mx.array:
        batch = packed(config, texts)
        embedded = target.embed_block(mx.array(batch.blocks))
        return hidden_states(draft, embedded, features_of(target, batch), batch)

    before = hidden(texts)
    for place, (document, anchor) in enumerate([(0, 4), (0, 6), (0, 11), (0, 29), (1, 3), (1, 17)]):
        changed = list(texts)
        ids = texts[document].ids.copy()
        ids[anchor + 1 :] = (ids[anchor + 1 :] + 1) % MASK_ID
        other = 1 - document
        rest = (texts[other].ids + 1) % MASK_ID  # and another document is another world
        changed[document] = replace(texts[document], ids=ids)
        changed[other] = replace(texts[other], ids=rest)
        after = hidden(changed)
        assert mx.allclose(before[place], after[place], atol=1e-5).item()
        assert not mx.allclose(before, after, atol=1e-2).item()
        # The token before the anchor is seen.
        ids = texts[document].ids.copy()
        ids[anchor - 1] = (ids[anchor - 1] + 1) % MASK_ID
        changed[document] = replace(texts[document], ids=ids)
        assert not mx.allclose(before[place], hidden(changed)[place], atol=1e-4).item()


def test_features_from_the_anchor_on_are_not_seen() -> None:
    """Not even the anchor's own, which decoding does not have."""
    config = draft_config()
    draft, target, batch = network(config), target_of(config), packed(config)
    features = features_of(target, batch)
    poisoned = mx.concatenate([features[:29], mx.full(features[29:31].shape, 1e4), features[31:]])
    aim = objective(target)
    clean, _ = aim.gradients(draft, batch, DraftHead(target), features, 1.0)
    dirty, _ = aim.gradients(draft, batch, DraftHead(target), poisoned, 1.0)
    assert clean.loss.item() == pytest.approx(dirty.loss.item(), rel=1e-6)


def test_labels_and_weights() -> None:
    batch = packed(draft_config(block_size=4))
    first, second = documents()
    assert batch.labels[0].tolist() == first.ids[5:8].tolist()
    assert batch.labels[3].tolist() == [first.ids[30], 0, 0]
    assert batch.valid[3].tolist() == [True, False, False]
    assert batch.blocks[4].tolist() == [second.ids[3], MASK_ID, MASK_ID, MASK_ID]
    assert batch.positions.tolist() == [*range(31), *range(20)]
    weighting = Weighting("exponential", gamma=2.0)
    made = weighting.weights(mx.zeros((6, 3)), mx.array(batch.valid))
    assert made[0].tolist() == pytest.approx([1.0, np.exp(-0.5), np.exp(-1.0)])
    assert made[3].tolist() == [1.0, 0.0, 0.0]
    assert made.sum().item() == pytest.approx(weighting.total(batch.valid))


def test_dpace_by_hand() -> None:
    losses = mx.array([[0.0, np.log(2.0), np.log(4.0)]])
    made = Weighting("dpace", alpha=0.5).weights(losses, mx.array([[True, True, False]]))
    first, second = 1.0, 1.0 * 0.75
    assert made[0].tolist() == pytest.approx([first + second, second, 0.0])


def test_anchors_are_tokens_of_the_answer() -> None:
    document = documents()[0]
    chosen = choose_anchors(document, 10, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 10
    assert sorted(chosen.tolist()) == chosen.tolist()
    everywhere = choose_anchors(document, 1000, np.random.default_rng(0))
    assert everywhere.tolist() == list(range(4, 30))


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_some_tokens_compete(family: str) -> None:
    config = draft_config()
    target = target_for(language_model(family), config.taps)
    batch = packed(config)
    head = Competition(target, negatives=20).head(batch, np.random.default_rng(1))
    labels, valid = head.labels(batch)
    assert head.ids is not None and head.size < VOCAB
    assert (head.ids[labels][valid] == batch.labels[valid]).all()
    assert (valid == batch.valid).all()
    hidden = mx.random.normal((2, 3, HIDDEN))
    assert mx.allclose(head(hidden), target.head(hidden)[..., mx.array(head.ids)], atol=1e-4)
    own = mx.array(np.unique(batch.labels[:2]))
    few = Competition(target, own).head(batch, np.random.default_rng(1))
    labels, valid = few.labels(batch)
    assert few.ids is not None and not valid[2:].all()
    assert (few.ids[labels][valid] == batch.labels[valid]).all()


def test_rows_of_a_quantised_head() -> None:
    model = make(CONFIGS["llama-tied"] | {"hidden_size": 64}, "llama")
    model.model.embed_tokens = nn.QuantizedEmbedding.from_embedding(model.model.embed_tokens)
    target = target_for(model)
    ids = mx.array([3, 1, 60])
    hidden = mx.random.normal((1, 2, 64))
    assert "scales" in target.backbone.embed_tokens
    expected = target.head(hidden)[..., ids]
    assert mx.allclose(hidden @ target.head_rows(ids).T, expected, atol=1e-4).item()


def test_bfloat16_computes_and_float32_keeps() -> None:
    config = draft_config()
    draft, target, batch = network(config), target_of(config), packed(config)
    features = features_of(target, batch)
    before = flat(draft.parameters())
    exact, slopes = objective(target).gradients(draft, batch, DraftHead(target), features, 1.0)
    half = objective(target, dtype=mx.bfloat16)
    rough, found = half.gradients(draft, batch, DraftHead(target), features, 1.0)
    assert rough.loss.item() != exact.loss.item()
    assert rough.loss.item() == pytest.approx(exact.loss.item(), rel=0.05)
    for name, value in flat(found).items():
        expected = flat(slopes)[name]
        assert value.dtype == mx.float32
        distance = mx.linalg.norm(value - expected) / mx.linalg.norm(expected)
        assert distance.item() < 0.2, name
    assert all(mx.array_equal(before[k], v).item() for k, v in flat(draft.parameters()).items())
