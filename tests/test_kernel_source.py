"""How the text of a kernel is put together from the files in `metal/`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dflash_mlx.kernels import source

FILES = {
    "op.metal": "// op\n//! use tiles\nfloat own;\n//! body\ny[0] = own;\n",
    "tiles.metal": "// tiles\n//! use packed\nfloat tiles;\n",
    "packed.metal": "// packed //! use op\nfloat packed;\n",
    "bad.metal": "//! use op\n//! body\n",
    "none.metal": "float own;\n",
}


@pytest.fixture
def metal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(source, "files", lambda package: tmp_path)
    source.read.cache_clear()
    yield
    source.read.cache_clear()


def test_a_used_file_stands_where_it_is_named(metal: None):
    header, body = source.read("op")
    used = "// tiles\n// packed //! use op\nfloat packed;\nfloat tiles;\n"
    assert header == f"// op\n{used}float own;\n"
    assert body == "y[0] = own;\n"


@pytest.mark.parametrize(("op", "why"), [("bad", "op.metal has a body"), ("none", "no line")])
def test_what_is_wrong_with_a_file_is_said(op: str, why: str, metal: None):
    with pytest.raises(AssertionError, match=why):
        source.read(op)


def test_helpers_come_before_what_uses_them():
    header, _ = source.read("quantized_matmul_small")
    places = [header.index(f"\n{kind}") for kind in ("struct Block", "struct Weight")]
    assert places == sorted(places) and source.USE.search(header) is None
