import os
import subprocess
import sys
from pathlib import Path

import pytest

from dflash_mlx import blas

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a slow BLAS")


def run(code: str, cache: Path, **variables: str) -> list[str]:
    """What `code` prints in a fresh Python, with `cache` and `prefer_openblas` at hand."""
    start = "import sys\nfrom pathlib import Path\nfrom dflash_mlx.blas import prefer_openblas\n"
    code = f"{start}cache = Path({str(cache)!r})\n{code}"
    command = [sys.executable, "-W", "error", "-c", code]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout.split()


MATMULS = """
print(prefer_openblas(cache))
import numpy as np, mlx.core as mx
mx.set_default_device(mx.cpu)
rng = np.random.default_rng(0)
for m, k, n in [(1, 7, 5), (16, 576, 1536), (33, 65, 129)]:
    a = rng.normal(size=(m, k)).astype(np.float32)
    b = rng.normal(size=(n, k)).astype(np.float32)
    c = rng.normal(size=(m, n)).astype(np.float32)
    got = [mx.array(a) @ mx.array(b).T, mx.addmm(mx.array(c), mx.array(a), mx.array(b).T, 0.5, 2.0)]
    print(all(np.allclose(g, w, atol=1e-3) for g, w in zip(got, [a @ b.T, 0.5 * a @ b.T + 2 * c])))
    z = mx.array(a + 1j * a[::-1]) @ mx.array(b - 2j * b).T
    print(np.allclose(z, (a + 1j * a[::-1]) @ (b - 2j * b).T, atol=1e-3))
"""

WHOSE = """
prefer_openblas(cache)
import ctypes, mlx.core
text, address = ctypes.c_char_p, ctypes.c_void_p
class Info(ctypes.Structure):
    _fields_ = [("file", text), ("base", address), ("name", text), ("at", address)]
for name in ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm"):
    found, info = ctypes.CDLL(None)[name], Info()
    ctypes.CDLL(None).dladdr(ctypes.cast(found, address), ctypes.byref(info))
    print(info.file.decode())
"""


@linux
def test_products_are_numpys(tmp_path):
    assert run(MATMULS, tmp_path) == ["True"] * 7


@linux
def test_the_forwarding_library_is_found_first_and_compiled_once(tmp_path):
    first = run(WHOSE, tmp_path)
    (library,) = tmp_path.iterdir()
    made = library.stat().st_mtime_ns
    assert first == [str(library)] * 3
    assert run(WHOSE, tmp_path, PATH="") == first
    assert library.stat().st_mtime_ns == made


@linux
@pytest.mark.parametrize(
    ("wanted", "threads"),
    [({}, 1), ({"OPENBLAS_NUM_THREADS": "2"}, min(2, os.cpu_count() or 1))],
)
def test_one_thread_unless_openblas_is_told_otherwise(tmp_path, monkeypatch, wanted, threads):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    code = "prefer_openblas(cache)\nimport ctypes\n"
    code += "print(ctypes.CDLL(None).scipy_openblas_get_num_threads())"
    assert run(code, tmp_path, **wanted) == [str(threads)]


@linux
def test_too_late_once_mlx_is_imported(tmp_path):
    assert run("import mlx.core\nprint(prefer_openblas(cache))", tmp_path) == ["False"]
    assert not any(tmp_path.iterdir())


@linux
def test_no_compiler_means_no(tmp_path):
    assert run("print(prefer_openblas(cache))", tmp_path, PATH="") == ["False"]
    assert not any(tmp_path.iterdir())


@linux
def test_a_failing_compiler_means_no_and_leaves_nothing(tmp_path):
    compiler = tmp_path / "bin" / "cc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    cache = tmp_path / "cache"
    assert run("print(prefer_openblas(cache))", cache, PATH=str(compiler.parent)) == ["False"]
    assert not any(cache.iterdir())


def test_nothing_to_do_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(blas.sys, "platform", "darwin")
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    assert blas.prefer_openblas(tmp_path) is False
    assert not any(tmp_path.iterdir())


def test_without_the_package_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(blas.sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.setattr(blas.importlib.util, "find_spec", lambda _: None)
    assert blas.prefer_openblas(tmp_path) is False
    assert not any(tmp_path.iterdir())


def test_importing_the_module_imports_no_mlx(tmp_path):
    assert run("print('mlx.core' in sys.modules)", tmp_path) == ["False"]
