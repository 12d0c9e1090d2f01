"""DFlash 2: convolutions inside the block, and a path through candidates instead of an argmax.

DFlash 1 guesses every token of a block without knowing the others. DFlash 2 lets neighbours know
each other in two places (https://inco.ai/blog/dflash2). A short causal convolution before and
behind each sublayer mixes a row of the block with the rows before it. And of the most probable
tokens at each place a selector chooses one after another: the score of token b behind token a is
the head's logit of b plus an inner product of small codebook vectors of a and b, weighed by the
row's hidden state. Scores between all candidates of neighbouring places are computed at once,
for every a what would follow it is chosen at once, and the path only follows these choices.

The selector does without the convolutions, too: `conv_kernel_size` 0, which is our own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config import DFlash2, DraftConfig
from ..kernels.choice import OFF
from ..kernels.selector import convolution, path
from ..sampling import Sampling, log_distribution
from .dflash import DFlashDraft, Layer
from .rope import Rotate
from .shortlist import Candidates, Proposal, Shortlist, Wanted, largest


class GroupedDynamicCausalConv(nn.Module):
    """A causal convolution of a sublayer's input and another of its output, over a block's rows.

    Row t becomes the sum over o of kernel[t, o] times row t - o, channel by channel, with zeros
    before the anchor. A kernel is a learnt part per channel plus a part per group of channels
    that is made from the sublayer's input. Context rows take no part.
    """

    def __init__(self, hidden_size: int, extra: DFlash2) -> None:
        super().__init__()
        groups = hidden_size // extra.conv_group_size
        self.base_kernel = mx.zeros((2, extra.conv_kernel_size, hidden_size))
        self.kernel_projection = nn.Linear(
            hidden_size, 2 * extra.conv_kernel_size * groups, bias=False
        )
        self._group_size = extra.conv_group_size
        self.kernels = OFF

    def __call__(
        self, rows: mx.array, sublayer: Callable[[mx.array], mx.array], residual: mx.array
    ) -> mx.array:
        """The residual [B, L, hidden_size] plus rows through convolution, sublayer, convolution."""
        run = convolution(self.kernels, rows, self.base_kernel, self._group_size)
        dynamic = self.kernel_projection(rows)

        def convolved(x: mx.array, which: int, *add: mx.array) -> mx.array:
            # The convolution takes one text.
            texts = [[a[i : i + 1] for a in (x, *add)] for i in range(x.shape[0])]
            return mx.concatenate(
                [run(x, self.base_kernel, dynamic[i], which, *a) for i, (x, *a) in enumerate(texts)]
            )

        return convolved(sublayer(convolved(rows, 0)), 1, residual)


class ConvolvedLayer(Layer):
    """One transformer layer with convolutions around its sublayers."""

    def __init__(self, config: DraftConfig, index: int, extra: DFlash2) -> None:
        super().__init__(config, index)
        self.attention_conv = GroupedDynamicCausalConv(config.hidden_size, extra)
        self.mlp_conv = GroupedDynamicCausalConv(config.hidden_size, extra)

    def __call__(self, x: mx.array, rotary: Rotate, view: Any, mask: Any) -> mx.array:
        """As the plain layer."""

        def attend(rows: mx.array) -> mx.array:
            return self.self_attn(rows, rotary, view, mask)

        x = self.attention_conv(self.input_layernorm(x), attend, x)
        return self.mlp_conv(self.post_attention_layernorm(x), self.mlp, x)


class CandidateSelector(nn.Module):
    """Scores of pairs of neighbouring tokens, in float32.

    The codebooks have a row per row of the target's head. Candidates are the first `vocabulary`
    ids only: what a head has behind them is padding, which stands for no token.
    """

    def __init__(self, config: DraftConfig, extra: DFlash2, vocabulary: int) -> None:
        super().__init__()
        self.predecessor_codebook = nn.Embedding(config.vocab_size, extra.selector_rank)
        self.successor_codebook = nn.Embedding(config.vocab_size, extra.selector_rank)
        self.hidden_projection = nn.Linear(config.hidden_size, extra.selector_rank, bias=False)
        self._vocabulary = vocabulary
        self._count = min(extra.selector_top_k, vocabulary)

    def __call__(
        self, hidden: mx.array, logits: mx.array | Shortlist, anchor: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Candidates and their scores.

        Args:
            hidden: [n, hidden_size], normalised.
            logits: float32 [n, vocab], or the k largest of them.
            anchor: int32 [1].

        Returns:
            ids, int32 [n, k], in no order; float32 [n, k, k], where [i, a, b] is the score of
            candidate b at place i behind candidate a at place i - 1 (behind the anchor at 0).
        """
        ids, unary = self.shortlist(logits)
        first = mx.broadcast_to(anchor, (1, self._count))
        weight = self.hidden_projection(hidden)[:, None].astype(mx.float32)
        before = self.predecessor_codebook(mx.concatenate([first, ids[:-1]])).astype(mx.float32)
        behind = self.successor_codebook(ids).astype(mx.float32)
        edges = (before * weight) @ behind.swapaxes(1, 2)
        return ids, unary[:, None] + edges

    def wanted(self) -> Wanted:
        """Which logits it looks at."""
        return Wanted(self._count, self._vocabulary)

    def shortlist(self, logits: mx.array | Shortlist) -> Shortlist:
        """The candidates among logits [n, vocab], if they were not found yet."""
        if isinstance(logits, Shortlist):
            return logits
        return largest(logits[:, : self._vocabulary], self._count)


class DFlash2Draft(DFlashDraft):
    """The DFlash 2 network.

    Args:
        config: with `dflash2`.
        vocabulary: how many ids stand for tokens; by default every row of the head. The published
            code makes no difference between tokens and padding. Leaving the padding out makes room
            for candidates that the target can accept; what is generated follows the target alone.
    """

    def __init__(self, config: DraftConfig, vocabulary: int | None = None) -> None:
        assert config.dflash2 is not None
        super().__init__(config)
        vocabulary = min(vocabulary or config.vocab_size, config.vocab_size)
        self.candidate_selector = CandidateSelector(config, config.dflash2, vocabulary)
        self.kernels = OFF

    def new_layer(self, config: DraftConfig, index: int) -> Layer:
        """One of the draft's layers."""
        assert config.dflash2 is not None
        if config.dflash2.conv_kernel_size == 0:
            return super().new_layer(config, index)
        return ConvolvedLayer(config, index, config.dflash2)

    def wanted(self, sampling: Sampling) -> Wanted | None:
        """The candidates', greedy or not."""
        return self.candidate_selector.wanted()

    def propose(
        self,
        hidden: mx.array,
        logits: mx.array | Shortlist,
        anchor: mx.array,
        sampling: Sampling,
        key: mx.array,
    ) -> Proposal:
        """Choose the drafted tokens, each behind the one before it; see `DFlashDraft.propose`.

        Filters and temperature work on the candidates' scores. The published code applies the
        temperature alone, which is the same where there are no filters; with them, candidates the
        target never takes are not drafted. Output is exact either way: q is what was drawn from.
        """
        ids, scores = self.candidate_selector(hidden, logits, anchor)
        run = path(self.kernels, scores, sampled=not sampling.greedy)
        if sampling.greedy:
            best = run(scores, ids)
            return Proposal(best.drafted, None, best.rows)
        logq = log_distribution(scores.reshape(-1, ids.shape[1]), sampling).reshape(scores.shape)
        # Gumbel's trick: the largest of log q + noise is drawn from q. Candidates before a place
        # may share its noise, as only one of them is on the path.
        found = run(logq, ids, mx.random.gumbel(ids.shape, key=key))
        everywhere = mx.full((ids.shape[0], self.config.vocab_size), -mx.inf)
        logq = mx.put_along_axis(everywhere, ids, found.rows, axis=-1)
        return Proposal(found.drafted, logq, found.rows)

    def eligible(self) -> Wanted:
        """As `wanted`."""
        return self.candidate_selector.wanted()

    def candidates(
        self, hidden: mx.array, logits: mx.array | Shortlist, anchor: mx.array
    ) -> Candidates:
        """See `DFlashDraft.candidates`; behind a token that is none, the head's logits count."""
        found = self.candidate_selector.shortlist(logits)
        ids, scores = self.candidate_selector(hidden, found, anchor)
        return Candidates(ids, mx.concatenate([scores, found.logits[:, None]], axis=1))
