"""A draft with random weights, run by the published PyTorch code and by ours.

Needs the extra `parity`. Both read the same folder with their own loaders. As a program it prints
the largest relative error of every family: `python -m tests.parity`.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np
import torch
from dflash import model as published
from safetensors.torch import save_file
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.utils.logging import disable_progress_bar

from dflash_mlx.config import DraftConfig
from dflash_mlx.drafts.dflash import DFlashDraft
from dflash_mlx.loading import read_draft
from dflash_mlx.sampling import Sampling

from .parity_configs import CONFIGS, HIDDEN, VOCAB

torch.set_num_threads(1)  # these products are small, and tests run side by side
# More rows than our cache holds before a sliding layer drops the oldest ones, and far enough for
# slow frequencies to turn.
LONG = 600
SHORT = 24
KEPT = (3, 1, 8, 2, 7, 5)  # tokens of each round, the anchor included
TOLERANCE = 1e-4


def published_class(raw: dict[str, Any]) -> Any:
    """The PyTorch class for a config, chosen as the published loader does."""
    second = "DFlash2DraftModel" in raw["architectures"]
    return published.DFlash2DraftModel if second else published.DFlashDraftModel


def random_tensors(raw: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Weights for every tensor of the published layout, none of them ones or zeros.

    Sizes keep activations of order one, and queries long enough for attention to choose.
    """
    with torch.device("meta"):
        shapes = published_class(raw)(Qwen3Config(**raw)).state_dict()
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, like in shapes.items():
        noise = torch.randn(like.shape, generator=random)
        if name.endswith(("norm.weight", "layernorm.weight")):
            noise = 1 + 0.2 * noise
            tensors[name] = 2 * noise if "q_norm" in name else noise
        elif name.endswith(".bias"):
            tensors[name] = 0.3 * noise
        elif "codebook" in name:
            tensors[name.removesuffix(".weight")] = 0.5 * noise
        elif name.endswith("base_kernel"):
            noise[:, 0] += 3
            tensors[name] = 0.3 * noise
        elif name.endswith("kernel_projection.weight"):
            tensors[name] = 0.4 * noise / like.shape[-1] ** 0.5
        else:
            tensors[name] = noise / like.shape[-1] ** 0.5
    return tensors


@contextmanager
def checkpoint(raw: dict[str, Any], seed: int = 0) -> Iterator[Path]:
    """A folder as published: config.json and safetensors."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(raw))
        save_file(random_tensors(raw, seed), folder / "model.safetensors", {"format": "pt"})
        yield folder


@dataclass
class Target:
    """What a draft takes from its target: made up, the same for both."""

    table: np.ndarray  # [VOCAB, HIDDEN], embeddings
    head: np.ndarray  # [VOCAB, HIDDEN]
    features: np.ndarray  # [rows, taps * HIDDEN]

    @staticmethod
    def random(taps: int, rows: int, seed: int = 1) -> "Target":
        """The features of one layer are larger than those of another, as real ones are."""
        random = np.random.default_rng(seed)
        scales = np.repeat(1 + np.arange(taps), HIDDEN)
        return Target(
            random.normal(size=(VOCAB, HIDDEN)).astype(np.float32),
            random.normal(size=(VOCAB, HIDDEN)).astype(np.float32) / 2,
            (random.normal(size=(rows, taps * HIDDEN)) * scales).astype(np.float32),
        )


@dataclass
class Drafted:
    """One round: hidden states [width - 1, HIDDEN] and logits [width - 1, VOCAB] of the masks."""

    hidden: Any
    logits: Any
    anchor: int


class Published:
    """Rounds by the published PyTorch code."""

    def __init__(self, folder: Path, raw: dict[str, Any], target: Target) -> None:
        self.model = published_class(raw).from_pretrained(
            folder, attn_implementation="sdpa", dtype=torch.float32
        )
        self.model.eval()
        self.raw, self.target = raw, target
        self.head = torch.nn.Linear(HIDDEN, VOCAB, bias=False)
        self.head.weight.data = torch.from_numpy(target.head)
        self.cache = published._make_cache(self.model.config)

    @torch.inference_mode()
    def round(self, ids: list[int], known: int, start: int) -> Drafted:
        """A block of `ids`, its anchor at `start`; features from row `known` on are new."""
        config = self.model.config
        scale = float(published._draft_value(config, "input_embedding_scale", 1.0))
        block = torch.from_numpy(self.target.table)[ids][None] * scale
        hidden = self.model(
            target_hidden=torch.from_numpy(self.target.features[known:start])[None],
            noise_embedding=block,
            position_ids=torch.arange(known, start + len(ids))[None],
            past_key_values=self.cache,
            use_cache=True,
        )[:, 1 - len(ids) :]
        published._crop_to(self.cache, start)
        logits = self.model.compute_logits(hidden, self.head)
        return Drafted(hidden, logits, ids[0])

    @torch.inference_mode()
    def greedy_path(self, drafted: Drafted) -> list[int]:
        """Tokens that DFlash 2 proposes."""
        path, _, _ = self.model.propose(
            drafted.hidden, torch.tensor([drafted.anchor]), self.head, 0
        )
        return list(path[0].tolist())

    @torch.inference_mode()
    def probabilities(self, drafted: Drafted, tokens: list[int], temperature: float) -> np.ndarray:
        """q [width - 1, VOCAB] of DFlash 2 along a path: its walk draws `tokens`."""
        count = self.model.candidate_selector.top_k
        candidates = torch.topk(drafted.logits, count, dim=-1, sorted=False).indices[0]
        draws = iter((candidates == torch.tensor(tokens)[:, None]).nonzero()[:, 1])
        with patch.object(published, "_sample_probs", lambda q: next(draws)[None]):
            path, ids, q = self.model.propose(
                drafted.hidden, torch.tensor([drafted.anchor]), self.head, temperature
            )
        assert path[0].tolist() == tokens
        return torch.zeros(len(tokens), VOCAB).scatter(-1, ids[0], q[0]).numpy()


class Ours:
    """The same rounds by the draft of this package; `change` makes it a wrong one."""

    def __init__(
        self,
        folder: Path,
        raw: dict[str, Any],
        target: Target,
        change: Callable[["Ours"], None] | None = None,
    ) -> None:
        self.config = DraftConfig.from_dict(raw, "config.json")
        self.folder, self.target = folder, target
        self.draft = self.read()
        if change:
            change(self)
        self.cache = self.draft.new_cache()

    def read(self, **changes: Any) -> DFlashDraft:
        """The draft, with fields of its config changed."""
        return read_draft(self.folder, replace(self.config, **changes), dtype="float32")

    def round(self, ids: list[int], known: int, start: int) -> Drafted:
        """As `Published.round`."""
        cache, rows = self.cache, start - known
        cache.reserve(rows + len(ids))
        features = mx.array(self.target.features[known:start])[None]
        state = self.draft.extend(features, known, cache.state)
        block = mx.array(self.target.table)[mx.array(ids)][None]
        hidden, state = self.draft.forward(block, start, state)
        cache.update(state)
        cache.commit(rows)
        hidden = hidden[:, 1:]
        logits = self.draft.shape_logits(hidden @ mx.array(self.target.head).T)
        return Drafted(hidden[0], logits[0], ids[0])

    def path(
        self, drafted: Drafted, sampling: Sampling, seed: int = 0
    ) -> tuple[list[int], np.ndarray | None]:
        """Proposed tokens and, where they are sampled, q [width - 1, VOCAB]."""
        anchor, key = mx.array([drafted.anchor], mx.int32), mx.random.key(seed)
        tokens, logq, _ = self.draft.propose(drafted.hidden, drafted.logits, anchor, sampling, key)
        ids: list[int] = tokens.tolist()
        return ids, None if logq is None else np.exp(np.array(logq))


@dataclass(frozen=True)
class Plan:
    """A prompt, then rounds with blocks of one width."""

    prompt: int
    width: int

    def rounds(self, mask: int) -> Iterator[tuple[list[int], int, int]]:
        """Blocks: ids, rows of the features already given, position of the anchor."""
        known, start = 0, self.prompt
        for index, kept in enumerate(KEPT):
            yield [10 + index] + [mask] * (self.width - 1), known, start
            known, start = start, start + min(kept, self.width)


def plans(raw: dict[str, Any]) -> tuple[Plan, ...]:
    """The trained block, behind a long prompt where that makes a difference; narrower ones."""
    config = DraftConfig.from_dict(raw, "config.json")
    far = config.sliding_window is not None or config.rope.kind != "default"
    block = config.block_size
    return Plan(LONG if far else SHORT, block), Plan(SHORT, block // 2 + 1), Plan(SHORT, 2)


def relative(ours: Any, theirs: torch.Tensor) -> float:
    """Largest error of a row, relative to the row's largest value."""
    wanted = theirs[0].numpy()
    error = np.abs(np.array(ours) - wanted).max(axis=-1)
    return float((error / np.abs(wanted).max(axis=-1)).max())


@dataclass(frozen=True)
class Errors:
    """Relative errors."""

    hidden: float
    logits: float


def drafts(
    name: str, change: Callable[[Ours], None] | None = None
) -> Iterator[tuple[Ours, Drafted, Published, Drafted]]:
    """Every round of a family, by both."""
    raw = CONFIGS[name]
    inner = raw["dflash_config"]
    target = Target.random(len(inner["target_layer_ids"]), LONG + sum(KEPT))
    with checkpoint(raw) as folder:
        for plan in plans(raw):
            theirs, ours = Published(folder, raw, target), Ours(folder, raw, target, change)
            for block in plan.rounds(inner["mask_token_id"]):
                yield ours, ours.round(*block), theirs, theirs.round(*block)


def errors(name: str, change: Callable[[Ours], None] | None = None) -> Iterator[Errors]:
    """The errors of every round of a family."""
    for _, a, _, b in drafts(name, change):
        yield Errors(relative(a.hidden, b.hidden), relative(a.logits, b.logits))


def worst(found: Iterable[Errors]) -> Errors:
    """The largest of each."""
    pairs = [(e.hidden, e.logits) for e in found]
    return Errors(*map(max, zip(*pairs, strict=True)))


def main() -> None:
    """Print the table."""
    disable_progress_bar()
    print(f"{'family':<44} {'hidden':>8} {'logits':>8}")
    for name in CONFIGS:
        with mx.stream(mx.cpu):
            largest = worst(errors(name))
        print(f"{name:<44} {largest.hidden:8.1e} {largest.logits:8.1e}")


if __name__ == "__main__":
    main()
