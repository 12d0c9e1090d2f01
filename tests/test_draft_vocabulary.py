"""Drafts that propose only some of the tokens: the same text, and fewer rows of the head."""

import re
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from dflash_mlx.checkpoint import read_config, read_tensors
from dflash_mlx.config import DFlash2, DraftConfig
from dflash_mlx.drafts import draft_for
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.errors import CheckpointError
from dflash_mlx.generation import rounds
from dflash_mlx.kernels.choice import kernels_of
from dflash_mlx.kv_quantised import KVBits
from dflash_mlx.loading import read_draft
from dflash_mlx.options import Options
from dflash_mlx.sampling import Sampling, log_distribution, restrict
from dflash_mlx.targets import target_for
from dflash_mlx.targets.base import Target
from dflash_mlx.targets.draft_head import NEVER
from dflash_mlx.train.packing import Document
from dflash_mlx.train.start import frequent_tokens

from . import convert_cases as cases
from .families import VOCAB, draft_config, make_pair, plain_ids, prompt_of
from .reduced import CONFIGS, make

IDS = sorted(np.random.default_rng(3).choice(VOCAB, 40, replace=False).tolist())
OTHERS = sorted(set(range(VOCAB)) - set(IDS))
EXTRA = DFlash2(conv_kernel_size=2, conv_group_size=16, selector_rank=8, selector_top_k=4)
ALONE = DFlash2(conv_kernel_size=0, conv_group_size=1, selector_rank=8, selector_top_k=4)
SIZE = 64  # of hidden states; few bits need whole groups


def few() -> mx.array:
    return mx.array(IDS, mx.int32)


def target_of(family: str, quantised: bool = False) -> Target:
    model = make(CONFIGS[family] | {"hidden_size": SIZE, "head_dim": 32}, "llama")
    if quantised:
        nn.quantize(model, 32, 4, class_predicate=lambda p, m: p.endswith(("lm_head", "tokens")))
    return target_for(model)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_the_rows_of_the_head_and_nothing_else(family: str, quantised: bool) -> None:
    target = target_of(family, quantised)
    hidden = mx.random.normal((2, 3, SIZE))
    logits = target.with_draft_vocabulary(few()).draft_logits(hidden, lambda logits: logits * 2)
    wanted = 2 * target.head(hidden)
    assert mx.allclose(logits[..., few()], wanted[..., few()], atol=1e-4).item()
    assert (logits[..., mx.array(OTHERS)] == NEVER).all().item()
    assert mx.array_equal(target.draft_logits(hidden, lambda logits: logits * 2), wanted).item()


@pytest.mark.parametrize("quantised", [False, True])
def test_the_largest_are_found_with_kernels_and_without(quantised: bool) -> None:
    target = target_of("llama-tied", quantised).with_draft_vocabulary(few())
    hidden = mx.random.normal((3, SIZE))
    logits = target.draft_logits(hidden[None], lambda logits: logits)[0]
    order = mx.argsort(-logits, axis=-1)
    for same in (target, target.with_kernels(kernels_of("on", 1))):
        for count in (1, 4):
            found = same.best_drafts(hidden, count, VOCAB)
            assert found is not None
            assert found.ids.tolist() == order[:, :count].tolist()
            values = mx.take_along_axis(logits, found.ids, axis=-1)
            assert mx.allclose(found.values, values, atol=1e-4).item()
            assert mx.allclose(found.lse, mx.logsumexp(logits, axis=-1), atol=1e-4).item()


def test_other_forms_of_a_target_keep_it() -> None:
    target = target_of("llama").with_draft_vocabulary(few())
    for form in (target.with_kv(KVBits(8, 32)), target.with_kernels(kernels_of("on", 1))):
        assert form.draft_head is not None and form.draft_head.ids.tolist() == IDS


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kernels", ["off", "on"])
@pytest.mark.parametrize("extra", [None, EXTRA, ALONE], ids=["DFlash 1", "DFlash 2", "selector"])
def test_the_text_is_the_targets(extra: DFlash2 | None, kernels: str, compiled: bool) -> None:
    prompt = prompt_of(9)
    config = draft_config(dflash2=extra, block_size=4, draft_vocab_size=len(IDS))
    pair = make_pair("llama", drafting(config))
    pair.kernels = kernels_of(kernels, 1)
    done = list(rounds(pair, prompt, Options(max_tokens=40, compiled=compiled)))
    assert [token for r in done for token in r.tokens] == plain_ids("llama", prompt, 40)


def test_a_guide_that_allows_only_other_tokens_leaves_a_distribution() -> None:
    """Rows of nothing but NEVER, of which a guide allows some, must not become NaN."""
    logits = mx.full((1, VOCAB), NEVER)
    bits = sum(1 << token for token in OTHERS[:3])
    allowed = mx.array([[bits & 0xFFFFFFFF, bits >> 32]], mx.uint32)
    logq = log_distribution(restrict(logits, allowed), Sampling(temperature=0.7, top_p=0.9))
    chances = mx.exp(logq)[0, mx.array(OTHERS[:3])]
    assert mx.allclose(chances, mx.full(3, 1 / 3), atol=1e-3).item()


def test_it_is_read_and_converted(tmp_path: Path) -> None:
    folder = written(tmp_path / "draft", few())
    config = DraftConfig.from_dict(read_config(folder), "draft")
    vocabulary = read_draft(folder, config, dtype="bfloat16").vocabulary
    assert vocabulary is not None and vocabulary.tolist() == IDS
    for bits in (None, 4):
        out = tmp_path / f"out {bits}"
        cases.convert(folder, out, parts="draft", drafter={"mlp": bits, "group_size": 32})
        kept = read_tensors(out)["draft_vocabulary"]
        assert (kept.dtype, kept.tolist()) == (mx.int32, IDS)
        assert DraftConfig.from_dict(read_config(out), "out").draft_vocab_size == len(IDS)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (few()[::-1], "expected ascending int32 ids from 0 to 63"),
        (few() + 64 - IDS[-1], "from 0 to 63"),
        (few() - IDS[0] - 1, "from 0 to 63"),
        (few().astype(mx.float32), "holds mlx.core.float32"),
        (few()[:-1], "draft_vocabulary is [39], expected [40]"),
    ],
    ids=["descending", "too high", "negative", "no integers", "too few"],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, ids: mx.array, message: str) -> None:
    folder = written(tmp_path / "draft", ids)
    config = DraftConfig.from_dict(read_config(folder), "draft")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_draft(folder, config)


@pytest.mark.parametrize(("size", "found"), [(None, None), (64, None), (40, 40)])
def test_its_size_in_a_config(size: int | None, found: int | None) -> None:
    raw = cases.DRAFT | {"draft_vocab_size": size}
    assert DraftConfig.from_dict(raw, "draft").draft_vocab_size == found


@pytest.mark.parametrize("size", [31, 65])
def test_sizes_that_are_refused(size: int) -> None:
    with pytest.raises(CheckpointError, match=f"draft_vocab_size is {size}, expected 32 to"):
        DraftConfig.from_dict(cases.DRAFT | {"draft_vocab_size": size}, "draft")


def test_the_tokens_that_answers_have_most_of() -> None:
    document = Document(np.array([9, 9, 9, 9, 5, 5, 7, 2, 7, 5], np.int32), 4)
    assert frequent_tokens([document], 20, 2).tolist() == [5, 7]
    assert frequent_tokens([document], 20, 4).tolist() == [0, 2, 5, 7]
    assert frequent_tokens([document], 6, 2).tolist() == [2, 5]


def drafting(config: DraftConfig) -> DFlashDraft:
    """A draft with random weights and this vocabulary."""
    mx.random.seed(11)
    draft = draft_for(config)
    draft.draft_vocabulary = few()
    return draft.prepare()


def written(folder: Path, ids: mx.array) -> Path:
    tensors = cases.draft_tensors(cases.DRAFT) | {"draft_vocabulary": ids}
    return cases.write(folder, cases.DRAFT | {"draft_vocab_size": len(IDS)}, tensors)
