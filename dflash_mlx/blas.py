"""A fast BLAS under MLX's CPU backend on Linux.

The Linux wheel of MLX links the reference BLAS, a plain triple loop. `scipy-openblas32` is
OpenBLAS with `scipy_` before every name, so a library of three forwarding functions under the
plain names, loaded before `mlx.core` binds them, takes the place of the slow ones. MLX imports
these three alone. Loading it later has no effect, which is why nothing here imports MLX.
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .paths import cache_root

# The enum arguments of CBLAS are ints in C.
_SOURCE = """
#define SHAPE int order, int ta, int tb, int m, int n, int k
#define GEMM(NAME, SCALAR, DATA)                                                             \\
    void scipy_##NAME(SHAPE, SCALAR alpha, const DATA *a, int lda, const DATA *b, int ldb,   \\
                      SCALAR beta, DATA *c, int ldc);                                        \\
    void NAME(SHAPE, SCALAR alpha, const DATA *a, int lda, const DATA *b, int ldb,           \\
              SCALAR beta, DATA *c, int ldc) {                                               \\
        scipy_##NAME(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);           \\
    }
GEMM(cblas_sgemm, float, float)
GEMM(cblas_dgemm, double, double)
GEMM(cblas_cgemm, const void *, void)
"""


def prefer_openblas(cache: Path | None = None) -> bool:
    """Load OpenBLAS in front of MLX's own BLAS; true if MLX, imported next, will use it.

    False, with nothing changed, off Linux, once `mlx.core` is imported, without the package
    `scipy_openblas32`, or without a C compiler. The forwarding library is compiled once and kept
    in `cache` (default: this package's cache folder). OpenBLAS runs on one thread unless its own
    variable OPENBLAS_NUM_THREADS says otherwise.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    openblas = _openblas()
    if openblas is None:
        return False
    try:
        shim = _shim(openblas, cache or cache_root())
        library = ctypes.CDLL(str(shim), mode=ctypes.RTLD_GLOBAL)
    except (OSError, subprocess.SubprocessError):
        return False
    # Its threads spin while they wait: where cores are shared, two are fifty times slower than one.
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        library.scipy_openblas_set_num_threads(1)
    return True


def _openblas() -> Path | None:
    # Finding the package does not run it.
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        return None
    library = Path(spec.origin).parent / "lib" / "libscipy_openblas.so"
    return library if library.is_file() else None


def _shim(openblas: Path, cache: Path) -> Path:
    """The compiled forwarding library for this `openblas`, from the cache if it is there."""
    identity = f"{_SOURCE}\0{openblas}\0{openblas.stat().st_mtime_ns}"
    shim = cache / f"blas-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if not shim.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".blas.", dir=cache) as scratch:
            os.replace(_compile(openblas, Path(scratch)), shim)
    return shim


def _compile(openblas: Path, scratch: Path) -> Path:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    (scratch / "blas.c").write_text(_SOURCE, encoding="utf-8")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", "blas.so", "blas.c", str(openblas)]
    command.append(f"-Wl,-rpath,{openblas.parent}")
    subprocess.run(command, cwd=scratch, check=True, capture_output=True, timeout=60)
    return scratch / "blas.so"
