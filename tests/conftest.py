import importlib.util

import pytest

from dflash_mlx.blas import prefer_openblas

prefer_openblas()  # before anything imports mlx

pytest_plugins = ["tests.metal_cpu.fixture"]


def pytest_configure(config: pytest.Config) -> None:
    if importlib.util.find_spec("dflash_mlx.cli") is None:
        raise pytest.UsageError("dflash-mlx is not installed: run `pip install -e '.[dev]'` first")
