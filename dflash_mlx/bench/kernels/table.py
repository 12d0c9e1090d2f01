"""Every kernel that `dflash-mlx bench kernels` times: one entry each, with sizes of real pairs."""

from __future__ import annotations

from ...kernels import (
    block_attention,
    candidate_path,
    dynamic_causal_conv,
    gated_delta_round,
    gather_quantized_matmul_small,
    head_topk,
    matmul_small,
    quantized_matmul_rows,
    quantized_matmul_small,
)
from .cases import Entry, Sizes
from .dflash2 import open_conv, open_path
from .heads import open_head
from .mixers import open_attention, open_gated_delta
from .products import open_dense, open_experts, open_quantised

BITS = (4, 8)


def _weight(n: int, k: int, group: int = 64, fused: int = 0) -> Sizes:
    return {"n": n, "k": k, "group": group, "fused": fused}


def _experts(experts: int, chosen: int, n: int, k: int, fused: int, group: int = 64) -> Sizes:
    return {"experts": experts, "chosen": chosen, **_weight(n, k, group, fused)}


def _attention(heads: int, kv_heads: int, dim: int, context: int, ahead: int = 0) -> Sizes:
    return {
        "heads": heads,
        "kv_heads": kv_heads,
        "dim": dim,
        "context": context,
        "ahead": ahead,
    }


def _contexts(label: str, heads: int, kv_heads: int, dim: int, ahead: int = 0) -> dict[str, Sizes]:
    return {
        f"{label}, {k}k context": _attention(heads, kv_heads, dim, 1024 * k, ahead)
        for k in (1, 8, 32)
    }


def _conv(size: int, side: int) -> Sizes:
    return {"size": size, "reach": 2, "group": 16, "side": side}


def _path(candidates: int, sampled: int) -> Sizes:
    return {"candidates": candidates, "sampled": sampled}


def _head(n: int, k: int, keep: int, group: int = 64) -> Sizes:
    return {"n": n, "k": k, "keep": keep, "group": group}


WEIGHTS = {
    "down 5120 x 17408": _weight(5120, 17408),
    "up 17408 x 5120": _weight(17408, 5120),
    "gate and up 17408 x 5120": _weight(17408, 5120, fused=1),
    "up 12288 x 4096": _weight(12288, 4096),
}
SMALL_WEIGHTS = {
    "40 x 96": _weight(40, 96, 32),
    "gate and up 24 x 64": _weight(24, 64, 32, 1),
}
SMALL_HEADS = {"greedy 70 x 64": _head(70, 64, 1, 32), "best 3 of 100 x 96": _head(100, 96, 3, 32)}

ENTRIES = (
    Entry(
        name="quantized_matmul_small",
        beside="mx.quantized_matmul",
        reference=quantized_matmul_small.quantized_matmul_small_reference,
        kernel=quantized_matmul_small.quantized_matmul_small_metal,
        threads=quantized_matmul_small.THREADS,
        sizes=WEIGHTS,
        small=SMALL_WEIGHTS,
        open=open_quantised,
        bits=BITS,
    ),
    Entry(
        name="quantized_matmul_rows",
        beside="mx.quantized_matmul",
        reference=quantized_matmul_small.quantized_matmul_small_reference,
        kernel=quantized_matmul_rows.quantized_matmul_rows_metal,
        threads=quantized_matmul_rows.THREADS,
        sizes=WEIGHTS,
        small=SMALL_WEIGHTS,
        open=open_quantised,
        bits=BITS,
        most=quantized_matmul_rows.MAX_ROWS,
    ),
    Entry(
        name="gather_quantized_matmul_small",
        beside="mx.gather_qmm",
        reference=gather_quantized_matmul_small.gather_quantized_matmul_small_reference,
        kernel=gather_quantized_matmul_small.gather_quantized_matmul_small_metal,
        threads=quantized_matmul_small.THREADS,
        sizes={
            "8 of 256 experts, gate and up 512 x 2048": _experts(256, 8, 512, 2048, 1),
            "8 of 256 experts, down 2048 x 512": _experts(256, 8, 2048, 512, 0),
        },
        small={
            "2 of 5 experts, gate and up 16 x 64": _experts(5, 2, 16, 64, 1, 32),
            "2 of 5 experts, down 24 x 32": _experts(5, 2, 24, 32, 0, 32),
        },
        open=open_experts,
        bits=BITS,
    ),
    Entry(
        name="matmul_small",
        beside="mx.matmul",
        reference=matmul_small.matmul_small_reference,
        kernel=matmul_small.matmul_small_metal,
        threads=matmul_small.THREADS,
        sizes={
            "5120 x 2560": {"n": 5120, "k": 2560},
            "9728 x 2560": {"n": 9728, "k": 2560},
            "2560 x 12800": {"n": 2560, "k": 12800},
        },
        small={"40 x 72": {"n": 40, "k": 72}},
        open=open_dense,
    ),
    Entry(
        name="head_topk",
        beside="mx.quantized_matmul and a choice among all logits",
        reference=head_topk.head_topk_reference,
        kernel=head_topk.head_topk_metal,
        threads=quantized_matmul_small.THREADS,
        sizes={
            "greedy 151936 x 4096": _head(151936, 4096, 1),
            "best 16 of 248320 x 5120": _head(248320, 5120, 16),
        },
        small=SMALL_HEADS,
        open=open_head,
        bits=BITS,
    ),
    Entry(
        name="head_topk_dense",
        beside="mx.matmul and a choice among all logits",
        reference=head_topk.head_topk_reference,
        kernel=head_topk.head_topk_metal,
        threads=quantized_matmul_small.THREADS,
        sizes={"best 16 of 151936 x 2560": _head(151936, 2560, 16)},
        small=SMALL_HEADS,
        open=open_head,
    ),
    Entry(
        name="block_attention",
        beside="mx.fast.scaled_dot_product_attention",
        reference=block_attention.block_attention_reference,
        kernel=block_attention.block_attention_metal,
        threads=block_attention.THREADS,
        sizes={
            **_contexts("24 heads over 4 of 256", 24, 4, 256),
            **_contexts("32 heads over 8 of 128", 32, 8, 128),
            **_contexts("draft, 32 heads over 8 of 128", 32, 8, 128, ahead=1),
        },
        small={
            "4 heads over 2 of 64": _attention(4, 2, 64, 70),
            "draft, 2 heads over 1 of 64": _attention(2, 1, 64, 40, 1),
        },
        open=open_attention,
    ),
    Entry(
        name="gated_delta_round",
        beside="mlx-lm's and MLX's gated delta, twice each",
        reference=gated_delta_round.gated_delta_round_reference,
        kernel=gated_delta_round.gated_delta_round_metal,
        threads=gated_delta_round.THREADS,
        sizes={"48 heads over 16 of 128": {"key_heads": 16, "heads": 48, "dim": 128}},
        small={"4 heads over 2 of 32": {"key_heads": 2, "heads": 4, "dim": 32}},
        open=open_gated_delta,
    ),
    Entry(
        name="dynamic_causal_conv",
        beside="plain MLX, compiled",
        reference=dynamic_causal_conv.dynamic_causal_conv_reference,
        kernel=dynamic_causal_conv.dynamic_causal_conv_metal,
        threads=dynamic_causal_conv.THREADS,
        sizes={"before, 5120": _conv(5120, 0), "behind with residual, 5120": _conv(5120, 1)},
        small={"before, 64": _conv(64, 0), "behind with residual, 48": _conv(48, 1)},
        open=open_conv,
    ),
    Entry(
        name="candidate_path",
        beside="plain MLX, compiled",
        reference=candidate_path.candidate_path_reference,
        kernel=candidate_path.candidate_path_metal,
        threads=candidate_path.THREADS,
        sizes={"16 candidates, greedy": _path(16, 0), "16 candidates, sampled": _path(16, 1)},
        small={"4 candidates, greedy": _path(4, 0), "5 candidates, sampled": _path(5, 1)},
        open=open_path,
        dtype="float32",
        least=2,
    ),
)
