"""MLX's attention and gated-delta kernels, dispatched as by MLX (see stock.py)."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .launch import Options
from .report import Report
from .signature import type_name
from .stock import StockKernel, Value, int32


def sdpa_vector(
    q: mx.array, k: mx.array, v: mx.array, scale: float, causal: bool, o: Options
) -> tuple[mx.array, Report]:
    """q [1, H, R, D], k and v [1, Hkv, L, D] -> [1, H, R, D]: a threadgroup per query row."""
    heads, rows, d = q.shape[1:]
    constants = (("do_causal", int(causal)), ("has_mask", 0), ("query_transposed", 0))
    constants += (("bool_mask", 0), ("float_mask", 0), ("has_sinks", 0))
    kernel = StockKernel(("sdpa_vector.h",), "sdpa_vector", f"{type_name(q.dtype)}, {d}", constants)
    values = {"queries": q, "gqa_factor": int32(heads // k.shape[1]), **_keys(k, v, scale)}
    (y,), report = kernel(values, {"out": (q.shape, q.dtype)}, (heads, rows, 1), (1024, 1, 1), o)
    return y, report


def sdpa_2pass(
    q: mx.array, k: mx.array, v: mx.array, scale: float, causal: bool, blocks: int, o: Options
) -> tuple[mx.array, Report, Report]:
    """As sdpa_vector, split over the context into `blocks` (a multiple of 32), then merged."""
    heads, rows, d = q.shape[1:]
    kv_heads, dtype = k.shape[1], type_name(q.dtype)
    constants = (("do_causal", int(causal)), ("has_mask", 0), ("query_transposed", 0))
    constants += (("bool_mask", 0), ("float_mask", 0), ("has_sinks", 0), ("blocks", blocks))
    first = StockKernel(("sdpa_vector.h",), "sdpa_vector_2pass_1", f"{dtype}, {d}", constants)
    shape = (heads, rows, blocks)
    partial, first_report = first(
        {"queries": q, **_keys(k, v, scale)},
        {"out": ((*shape, d), q.dtype), "sums": (shape, mx.float32), "maxs": (shape, mx.float32)},
        (kv_heads, 1, blocks),
        (32, heads // kv_heads, rows),
        o,
    )
    second = StockKernel(("sdpa_vector.h",), "sdpa_vector_2pass_2", f"{dtype}, {d}")
    values = dict(zip(("partials", "sums", "maxs"), partial, strict=True)) | {
        "blocks": int32(blocks)
    }
    outputs = {"out": (q.shape, q.dtype)}
    (y,), second_report = second(values, outputs, (heads, rows, 1), (1024, 1, 1), o)
    return y, first_report, second_report


def _keys(k: mx.array, v: mx.array, scale: float) -> dict[str, Value]:
    length, d = k.shape[2:]
    strides = {"head_stride": np.uint64(length * d), "seq_stride": np.uint64(d)}
    named = {f"{x}_{word}": value for x in "kv" for word, value in strides.items()}
    return {"keys": k, "values": v, "N": int32(length), "scale": np.float32(scale), **named}


def steel_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, causal: bool, o: Options
) -> tuple[mx.array, Report]:
    """As sdpa_vector, by tiles of 32 query rows with simdgroup matrices."""
    heads, rows, d = q.shape[1:]
    kv_heads, length = k.shape[1:3]
    tile = 32 if d < 128 else 16
    params = _attention_params(heads, kv_heads, rows, length, d, tile, scale)
    constants = (("align_Q", int(rows % 32 == 0)), ("align_K", int(length % tile == 0)))
    constants += (("do_causal", int(causal)), ("has_mask", 0), ("has_sinks", 0), ("save_lse", 0))
    kernel = StockKernel(
        ("steel/attn/kernels/steel_attention.h",),
        "attention",
        f"{type_name(q.dtype)}, 32, {tile}, {d}, {d}, 4, 1",
        constants,
    )
    values = {"Q": q, "K": k, "V": v, "params": params}
    groups = (-(-rows // 32), heads, 1)
    (y,), report = kernel(values, {"O": (q.shape, q.dtype)}, groups, (32, 4, 1), o)
    return y, report


def _attention_params(
    heads: int, kv_heads: int, rows: int, length: int, d: int, tile: int, scale: float
) -> np.ndarray:
    """The bytes of MLX's AttnParams (steel/attn/params.h) for contiguous arrays of one batch."""
    ints = [1, heads, d, rows, length, heads // kv_heads]
    blocks = [-(-rows // 32), -(-length // tile), rows // 32, length // tile]
    rest = [rows % 32, length % tile, length - rows]
    strides = [[h * n * d, n * d, d] for h, n in ((heads, rows), *[(kv_heads, length)] * 2)]
    strides.append(strides[0])
    head = np.array(ints, np.int32).tobytes() + np.float32(scale).tobytes()
    head += np.array(blocks + rest, np.int32).tobytes()
    return np.frombuffer(head + np.array(strides, np.int64).tobytes(), np.uint8)


def gated_delta_chunk(
    q: mx.array, k: mx.array, v: mx.array, g: mx.array, beta: mx.array, state: mx.array, o: Options
) -> tuple[mx.array, mx.array, Report]:
    """q, k [B, T, Hk, Dk], v [B, T, Hv, Dv], g, beta [B, T, Hv], state [B, Hv, Dv, Dk] float32.

    MLX's matrix form in chunks of 8 tokens; returns y, the new state and the report.
    """
    b, t, hk, dk = k.shape
    hv, dv = v.shape[2:]
    kernel = StockKernel(
        ("gated_delta_update.h",),
        "gated_delta_fused_chunk",
        f"{type_name(q.dtype)}, {dk}, {dv}, {hk}, {hv}, 8",
        (("save_state", 1),),
    )
    values = {"q": q, "k": k, "v": v, "state_in": state, "g": g, "beta": beta, "T": int32(t)}
    outputs = {"y": (v.shape, q.dtype), "state_out": (state.shape, mx.float32)}
    (y, new), report = kernel(values, outputs, (1, dv // 32, b * hv), (32, 4, 1), o)
    return y, new, report
