"""Benchmarks behind `dflash-mlx bench`; each is a module, with what it shares beside it."""
