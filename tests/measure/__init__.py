"""Measurements that back figures in the docs; run by hand, never by the test suite."""

from dflash_mlx.blas import prefer_openblas

FAST_BLAS = prefer_openblas()  # before any of them imports MLX
