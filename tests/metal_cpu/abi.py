"""The structures that Python shares with the runtime: a mirror of runtime/abi.h."""

from __future__ import annotations

import ctypes as c

ISSUE_KINDS = (
    "out-of-bounds",
    "write-to-input",
    "uninitialised-read",
    "race",
    "same-address-store",
    "barrier-divergence",
    "simd-divergence",
    "inactive-lane",
    "threadgroup-limit",
    "trap",
    "timeout",
    "red-zone",
    "misaligned",
)


class Counts(c.Structure):
    _fields_ = [
        (name, c.c_uint64)
        for name in ("lane_bytes", "simd_bytes", "request_lines", "group_lines", "grid_lines")
    ]


class Buffer(c.Structure):
    _fields_ = [
        ("name", c.c_char_p),
        ("data", c.c_void_p),
        ("size", c.c_uint64),
        ("itemsize", c.c_uint32),
        ("role", c.c_uint32),
        ("filled", c.c_uint32),
        ("modified", c.c_uint32),
        ("unwritten", c.c_uint64),
        ("first_unwritten", c.c_uint64),
        ("read", Counts),
        ("write", Counts),
    ]


class RawIssue(c.Structure):
    _fields_ = [
        ("kind", c.c_uint32),
        ("buffer", c.c_uint32),
        ("offset", c.c_int64),
        ("pc", c.c_uint64),
        ("other_pc", c.c_uint64),
        *((name, c.c_uint32) for name in ("size", "write", "lane", "other_lane", "group")),
        *((name, c.c_uint32) for name in ("other_group", "mask", "line")),
        ("file", c.c_char_p),
        ("count", c.c_uint64),
    ]


class Launch(c.Structure):
    _fields_ = [
        ("entry", c.c_void_p),
        ("buffers", c.POINTER(Buffer)),
        *((name, c.c_uint32) for name in ("n_buffers", "order", "checked", "traffic")),
        ("seed", c.c_uint64),
        ("timeout", c.c_double),
        ("grid", c.c_uint32 * 3),
        ("group", c.c_uint32 * 3),
        ("granule", c.c_uint32),
        ("status", c.c_uint32),
        *((name, c.c_uint64) for name in ("threads", "groups", "barriers", "simd_barriers")),
        *((name, c.c_uint64) for name in ("collectives", "matrix_products")),
        *((name, c.c_uint64) for name in ("threadgroup_bytes", "tg_read_bytes")),
        *((name, c.c_uint64) for name in ("tg_write_bytes", "tg_requests", "tg_cycles")),
        ("issues", c.POINTER(RawIssue)),
        ("n_issues", c.c_uint32),
        ("n_arrays", c.c_uint32),
        ("array_names", c.POINTER(c.c_char_p)),
    ]
