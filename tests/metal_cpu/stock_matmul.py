"""MLX's matmul kernels for few rows, dispatched as by MLX (see stock.py)."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .launch import Options
from .report import Report
from .signature import type_name
from .stock import StockKernel, int32

QUANTIZED = ("steel/gemm/gemm.h", "quantized_utils.h", "quantized.h")


def qmv(
    x: mx.array, w: mx.array, scales: mx.array, biases: mx.array, group: int, bits: int, o: Options
) -> tuple[mx.array, Report]:
    """x [M, K], quantised w -> [M, N]: one pass over w per row (MLX on M1 and M2)."""
    m, k, n = *x.shape, w.shape[0]
    fast = n % 8 == 0 and k % 512 == 0
    kernel = StockKernel(
        QUANTIZED,
        "affine_qmv_fast" if fast else "affine_qmv",
        f"{type_name(x.dtype)}, {group}, {bits}, false",
    )
    values = {"w": w, "scales": scales, "biases": biases, "x": x}
    values |= {"in_vec_size": int32(k), "out_vec_size": int32(n)}
    (y,), report = kernel(values, {"y": ((m, n), x.dtype)}, (m, -(-n // 8), 1), (32, 2, 1), o)
    return y, report


def qmv_wide(
    x: mx.array, w: mx.array, scales: mx.array, biases: mx.array, group: int, bits: int, o: Options
) -> tuple[mx.array, Report]:
    """x [M, K], quantised w -> [M, N]: one pass over w per five rows (MLX on M3 and later)."""
    m, k, n = *x.shape, w.shape[0]
    tile = -(-m // -(-m // 5))
    kernel = StockKernel(
        QUANTIZED, "affine_qmv_wide", f"{type_name(x.dtype)}, {group}, {bits}, {tile}, 8, false"
    )
    values = {"w": w, "scales": scales, "biases": biases, "x": x}
    values |= {"in_vec_size": int32(k), "out_vec_size": int32(n), "M": int32(m)}
    groups = (-(-m // tile), -(-n // 8), 1)
    (y,), report = kernel(values, {"y": ((m, n), x.dtype)}, groups, (32, 2, 1), o)
    return y, report


def qmm_t(
    x: mx.array, w: mx.array, scales: mx.array, biases: mx.array, group: int, bits: int, o: Options
) -> tuple[mx.array, Report]:
    """x [M, K], quantised w -> [M, N]: 32 x 32 tiles of simdgroup matrices."""
    m, k, n = *x.shape, w.shape[0]
    aligned = str(n % 32 == 0).lower()
    kernel = StockKernel(
        QUANTIZED, "affine_qmm_t", f"{type_name(x.dtype)}, {group}, {bits}, {aligned}, false"
    )
    values = {"w": w, "scales": scales, "biases": biases, "x": x}
    values |= {"K": int32(k), "N": int32(n), "M": int32(m)}
    groups = (-(-n // 32), -(-m // 32), 1)
    (y,), report = kernel(values, {"y": ((m, n), x.dtype)}, groups, (32, 2, 2), o)
    return y, report


def gemv_wide(x: mx.array, w: mx.array, o: Options) -> tuple[mx.array, Report]:
    """x [M, K], w [N, K], float16 or bfloat16, M 2..15, K a multiple of 4 -> [M, N] (M3 and on)."""
    (m, k), n = x.shape, w.shape[0]
    passes = -(-m // 5)
    tile, lanes = -(-m // passes), 32 if passes == 1 or n <= 64 else 16
    constants = (("gemv_wide_has_batch", 0), ("gemv_wide_do_axpby", 0))
    kernel = StockKernel(
        ("steel/utils.h", "gemv.h"),
        "gemv_wide",
        f"{type_name(x.dtype)}, {tile}, {lanes}",
        constants,
    )
    values = {"mat": w, "in_vec": x, "in_vec_size": int32(k), "out_vec_size": int32(n)}
    values |= {"M": int32(m), "matrix_ld": int32(k), "vector_ld": int32(k)}
    outputs = {"out_vec": ((m, n), x.dtype)}
    groups = (1 if n >= 65536 else passes, -(-n // 4), 1)
    (y,), report = kernel(values, outputs, groups, (32, lanes // 8, 1), o)
    return y, report


def gemm(x: mx.array, w: mx.array, o: Options) -> tuple[mx.array, Report]:
    """x [M, K], w [N, K] -> [M, N]: tiles of 64 x 32, as for wide float16 or bfloat16 weights."""
    (m, k), n = x.shape, w.shape[0]
    rows, columns = -(-m // 64), -(-n // 32)
    params = np.array([m, n, k, k, k, n, columns, rows], np.int32).tobytes()
    params += np.zeros(3, np.int64).tobytes() + np.array([0, k // 32, 1, 0], np.int32).tobytes()
    aligned = {"align_M": m % 64 == 0, "align_N": n % 32 == 0, "align_K": k % 32 == 0}
    constants = tuple((name, int(value)) for name, value in aligned.items())
    constants += (("has_batch", 0), ("use_out_source", 0), ("do_axpby", 0))
    kernel = StockKernel(
        ("steel/gemm/gemm.h", "steel/gemm/kernels/steel_gemm_fused.h"),
        "gemm",
        f"{type_name(x.dtype)}, 64, 32, 32, 2, 2, false, true",
        constants,
    )
    values = {"A": x, "B": w, "params": np.frombuffer(params, np.uint8)}
    outputs = {"D": ((m, n), x.dtype)}
    (y,), report = kernel(values, outputs, (columns, rows, 1), (32, 2, 2), o)
    return y, report
