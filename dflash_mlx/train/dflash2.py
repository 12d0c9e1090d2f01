"""What DFlash 2 adds, over many blocks: its convolutions and its selector's loss.

The selector learns with the true token before each place. Until its first error the path it
takes in decoding stands behind just these tokens, so accuracies mean the same there.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from ..drafts.dflash2 import CandidateSelector, GroupedDynamicCausalConv


def convolved(
    conv: GroupedDynamicCausalConv,
    rows: mx.array,
    sublayer: Callable[[mx.array], mx.array],
    residual: mx.array,
) -> mx.array:
    """The residual plus blocks [N, b, H] through convolution, sublayer, convolution.

    As `kernels.dynamic_causal_conv` defines it for one block; nothing crosses from one to another.
    """
    _, reach, size = conv.base_kernel.shape
    dynamic = conv.kernel_projection(rows)
    groups = dynamic.shape[-1] // (2 * reach)
    made = mx.repeat(dynamic.reshape(*rows.shape[:2], 2, reach, groups), size // groups, axis=-1)
    kernel = conv.base_kernel + made  # [N, b, 2, reach, H]

    def run(x: mx.array, side: int) -> mx.array:
        out = mx.zeros_like(x)
        for back in range(min(reach, x.shape[1])):
            earlier = mx.pad(x, [(0, 0), (back, 0), (0, 0)])[:, : x.shape[1]]
            out = out + kernel[:, :, side, back] * earlier
        return out

    out: mx.array = residual + run(sublayer(run(rows, 0)), 1)
    return out


def selector_scores(
    selector: CandidateSelector,
    hidden: mx.array,
    before: mx.array,
    ids: mx.array,
    unary: mx.array,
) -> mx.array:
    """Scores of the candidates behind the true tokens before them, float32 [N, b - 1, k].

    Args:
        hidden: [N, b - 1, hidden_size].
        before: int32 [N, b - 1], the token before each place.
        ids, unary: the candidates [N, b - 1, k] and their logits, to which no gradient goes: the
            head's own loss makes those.
    """
    weight = selector.hidden_projection(hidden).astype(mx.float32)
    first = selector.predecessor_codebook(before).astype(mx.float32) * weight
    second = selector.successor_codebook(ids).astype(mx.float32)
    scores: mx.array = mx.stop_gradient(unary) + (second @ first[..., None])[..., 0]
    return scores


def selector_loss(
    scores: mx.array, ids: mx.array, labels: mx.array, weights: mx.array
) -> tuple[mx.array, mx.array]:
    """Weighted cross-entropy of the true candidate, summed; which places are right [N, b - 1].

    Places where the true token is no candidate teach nothing and count as wrong.
    """
    is_label = ids == labels[..., None]
    among = is_label.any(axis=-1)
    true = mx.where(is_label, scores, 0.0).sum(axis=-1)
    losses = mx.where(among, mx.logsumexp(scores, axis=-1) - true, 0.0)
    best = mx.take_along_axis(ids, mx.argmax(scores, axis=-1, keepdims=True), axis=-1)[..., 0]
    return (losses * weights).sum(), best == labels
