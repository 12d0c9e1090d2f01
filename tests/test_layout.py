"""The shape of the project: who may import whom, what gets packaged, what starts fast.

Rules are read from the source with `ast`, so they also hold for code that no test runs.
"""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import dflash_mlx

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# A module imports only from its own layer or from one above it in this list.
LAYERS = (
    "errors fields span rope implemented trial config",
    "sampling logprobs guide accept stats width lookup costs kv kv_quantised recurrent batched",
    "waves paths blas checkpoint thinking options footprint machine memory watch ranks",
    "shards sharding",
    "kernels",
    "drafts targets pairs hub gguf catalog downloads wheels pairfile",
    "embedded draftcheck fitting finding",
    "loading listing",
    "session step ahead text splitting decode copying adaptive along guided tune generation",
    "prefix conversation selfcheck ties verification exactness engine several",
    "convert bench train serve doctor",
    "cli",
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer.split()}
OUTSIDE_LAYERS = {"", "metal"}  # "" is dflash_mlx/__init__.py: the public names, resolved lazily

MAY_IMPORT_MLX_LM = {
    "bench",
    "convert",
    "targets",
    "drafts",
    "loading",
    "session",
    "text",
    "splitting",
    "generation",
    "conversation",
    "selfcheck",
}
# The self check builds one, small and random, instead of reading it from files; benchmarks time
# single operations of theirs.
MAY_IMPORT_MLX_LM_MODELS = {"bench", "drafts", "targets", "loading", "selfcheck"}
HEAVY = {"mlx", "mlx_lm", "transformers"}

MAX_LINES = 400
SOURCE_SUFFIXES = {".py", ".metal", ".h", ".hpp", ".c", ".cc", ".cpp", ".sh"}


@dataclass(frozen=True)
class Import:
    names: tuple[str, ...]  # `from a.b import c` imports a.b, and perhaps a.b.c
    line: int
    at_start: bool  # runs when the module is imported

    def reaches(self, package: str) -> bool:
        return any(name == package or name.startswith(package + ".") for name in self.names)


@dataclass(frozen=True)
class Module:
    name: str
    file: str
    imports: tuple[Import, ...]

    @property
    def part(self) -> str:
        return part_of(self.name)


def part_of(name: str) -> str:
    """What a layer lists: `dflash_mlx.targets.qwen3` -> `targets`."""
    return name.partition(".")[2].partition(".")[0]


def read_tree(root: Path) -> dict[str, Module]:
    """Every module as it is named once installed."""
    modules = {}
    for folder, package in {
        "dflash_mlx": "dflash_mlx",
        "cli": "dflash_mlx.cli",
        "metal": "dflash_mlx.metal",
    }.items():
        for path in sorted((root / folder).rglob("*.py")):
            inner = path.relative_to(root / folder).with_suffix("").parts
            is_package = inner[-1] == "__init__"
            name = ".".join((package, *(inner[:-1] if is_package else inner)))
            parent = name if is_package else name.rpartition(".")[0]
            imports = tuple(find_imports(ast.parse(path.read_text()), parent))
            modules[name] = Module(name, str(path.relative_to(root)), imports)
    return modules


def find_imports(node: ast.AST, parent: str, at_start: bool = True) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import((alias.name,), child.lineno, at_start) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = absolute(child, parent)
            for alias in child.names:
                yield Import((base, f"{base}.{alias.name}"), child.lineno, at_start)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from find_imports(child, parent, at_start=False)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from find_imports(ast.Module(child.body, []), parent, at_start=False)
            yield from find_imports(ast.Module(child.orelse, []), parent, at_start)
        else:
            yield from find_imports(child, parent, at_start)


def absolute(node: ast.ImportFrom, parent: str) -> str:
    if not node.level:
        return node.module or ""
    above = parent.split(".")[: len(parent.split(".")) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


def violations(modules: dict[str, Module]) -> list[str]:
    heavy = heavy_modules(modules)
    found = []
    for module in modules.values():
        if module.part not in RANK.keys() | OUTSIDE_LAYERS:
            found.append(f"{module.file}: unknown module {module.part!r}: add it to a layer")
        for item in module.imports:
            found += [f"{module.file}:{item.line}: {why}" for why in broken(module, item, heavy)]
    return found


def broken(module: Module, item: Import, heavy: set[str]) -> Iterator[str]:
    """Which rules one import breaks."""
    if item.reaches("dflash_mlx.metal"):
        yield "metal is data: read it with importlib.resources"
    if item.reaches("mlx_lm") and module.part not in MAY_IMPORT_MLX_LM:
        yield f"only {sorted(MAY_IMPORT_MLX_LM)} import mlx_lm"
    if item.reaches("mlx_lm.models") and module.part not in MAY_IMPORT_MLX_LM_MODELS:
        yield f"only {sorted(MAY_IMPORT_MLX_LM_MODELS)} import mlx_lm.models"
    if module.part == "cli" and item.at_start and any(name in heavy for name in loaded_by(item)):
        yield f"brings in mlx: import {item.names[-1]} inside the function that needs it"
    if module.part in RANK:
        yield from breaks_layers(module, item)


def breaks_layers(module: Module, item: Import) -> Iterator[str]:
    deepest = item.names[-1]
    if not item.reaches("dflash_mlx") or item.reaches("dflash_mlx.metal"):
        return
    if part_of(deepest) in RANK:
        if RANK[part_of(deepest)] > RANK[module.part]:
            yield f"{module.part} may not import the later {part_of(deepest)}"
    elif part_of(deepest) != "__version__":
        yield f"takes {deepest} from the lazy package: import it from the module that defines it"


def loaded_by(item: Import) -> Iterator[str]:
    """Every module that an import runs: the ones named and the packages around them."""
    for name in item.names:
        parts = name.split(".")
        yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def heavy_modules(modules: dict[str, Module]) -> set[str]:
    """Modules whose import loads mlx, directly or through others."""
    heavy = set(HEAVY)
    grown = True
    while grown:
        grown = False
        for module in modules.values():
            names = (n for item in module.imports if item.at_start for n in loaded_by(item))
            if module.name not in heavy and any(name in heavy for name in names):
                heavy.add(module.name)
                grown = True
    return heavy


def write(root: Path, files: dict[str, str]) -> dict[str, Module]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return read_tree(root)


CLEAN = {
    "dflash_mlx/__init__.py": "def __getattr__(name):\n    from dflash_mlx import loading\n",
    "dflash_mlx/errors.py": "import json\n",
    "dflash_mlx/accept.py": "import mlx.core as mx\nfrom dflash_mlx.errors import DFlashError\n",
    "dflash_mlx/pairs.py": "from dflash_mlx import errors, __version__\n",
    "dflash_mlx/stats.py": "from dflash_mlx.accept import greedy\n",
    "dflash_mlx/targets/__init__.py": "from mlx_lm.models import qwen3\n",
    "dflash_mlx/targets/qwen3.py": "from . import base\nfrom ..accept import greedy\n",
    "dflash_mlx/loading.py": "from mlx_lm.models.cache import KVCache\n",
    "metal/__init__.py": "",
    "cli/__init__.py": "from .main import app\nfrom dflash_mlx import pairs\n",
    "cli/main.py": "from dflash_mlx.errors import DFlashError\n"
    "def app():\n    import mlx.core\n    from dflash_mlx.loading import load\n",
}

PLANTED = {
    "later layer": ("dflash_mlx/accept.py", "from dflash_mlx.loading import load", "later loading"),
    "later layer, in a function": (
        "dflash_mlx/accept.py",
        "def f():\n    from dflash_mlx import loading",
        "later loading",
    ),
    "later layer, relative": (
        "dflash_mlx/targets/base.py",
        "from ..loading import x",
        "later loading",
    ),
    "later layer, for types": (
        "dflash_mlx/accept.py",
        "if TYPE_CHECKING:\n    from dflash_mlx.loading import Pair",
        "later loading",
    ),
    "the command line": ("dflash_mlx/serve/http.py", "import dflash_mlx.cli.main", "later cli"),
    "public name in cli": ("cli/chat.py", "from dflash_mlx import Pair", "module that defines"),
    "public name": ("dflash_mlx/loading.py", "from dflash_mlx import Pair", "module that defines"),
    "metal": ("dflash_mlx/kernels/a.py", "from dflash_mlx import metal", "metal is data"),
    "mlx_lm": ("dflash_mlx/stats.py", "import mlx_lm", "import mlx_lm"),
    "mlx_lm models": ("dflash_mlx/convert/a.py", "from mlx_lm import models", "mlx_lm.models"),
    "mlx in cli": ("cli/chat.py", "import mlx.core as mx", "brings in mlx"),
    "mlx in cli, in a block": ("cli/chat.py", "if True:\n    import mlx", "brings in mlx"),
    "mlx in cli, at two removes": ("cli/chat.py", "from dflash_mlx import stats", "brings in mlx"),
    "mlx in cli, by its package": (
        "cli/chat.py",
        "import dflash_mlx.targets.qwen3",
        "brings in mlx",
    ),
    "unknown module": ("dflash_mlx/helpers.py", "", "add it to a layer"),
    "unknown package": ("dflash_mlx/misc/a.py", "", "add it to a layer"),
}


def test_the_rules_pass_a_clean_tree(tmp_path: Path) -> None:
    assert violations(write(tmp_path, CLEAN)) == []


@pytest.mark.parametrize(("file", "source", "message"), PLANTED.values(), ids=PLANTED)
def test_the_rules_catch(tmp_path: Path, file: str, source: str, message: str) -> None:
    found = violations(write(tmp_path, CLEAN | {file: source + "\n"}))
    assert len(found) == 1
    assert found[0].startswith(file)
    assert message in found[0]


def test_imports_go_one_way() -> None:
    assert violations(read_tree(ROOT)) == []


def unpackaged(root: Path, setuptools: dict) -> list[str]:
    """Packages and data files that would be missing from a wheel."""
    missing = []
    for package, folder in setuptools["package-dir"].items():
        for path in sorted((root / folder).rglob("*")):
            inner = path.relative_to(root / folder)
            if path.is_dir() or "__pycache__" in inner.parts:
                continue
            name = ".".join((package, *inner.parent.parts))
            patterns = setuptools["package-data"].get(package, [])
            data = {file for pattern in patterns for file in (root / folder).glob(pattern)}
            if path.suffix == ".py":
                missing += [] if name in setuptools["packages"] else [f"package {name}"]
                missing += [] if (path.parent / "__init__.py").exists() else [f"{name}.__init__"]
            elif path not in data:
                missing.append(f"data {folder}/{inner.as_posix()}")
    return sorted(set(missing))


def test_everything_is_packaged() -> None:
    assert unpackaged(ROOT, PYPROJECT["tool"]["setuptools"]) == []


def test_unpackaged_files_are_found(tmp_path: Path) -> None:
    setuptools = {
        "packages": ["a", "a.metal"],
        "package-dir": {"a": "a", "a.metal": "metal"},
        "package-data": {"a": ["assets/**/*"], "a.metal": ["*.metal"]},
    }
    present = ["a/__init__.py", "a/assets/x/y.json", "metal/__init__.py", "metal/op.metal"]
    absent = ["a/new/__init__.py", "a/bare/x.py", "a/notes.txt", "metal/op.h"]
    for name in present + absent:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = ["a.bare.__init__", "data a/notes.txt", "data metal/op.h"]
    assert unpackaged(tmp_path, setuptools) == [*expected, "package a.bare", "package a.new"]


def test_the_command_line_starts_without_mlx() -> None:
    code = f"import sys, dflash_mlx.cli; print(sorted({HEAVY} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", dflash_mlx.__all__)
def test_public_names_resolve(name: str) -> None:
    getattr(dflash_mlx, name)
    # Importing a submodule sets it as an attribute of the package: it must not hide a public name.
    assert not isinstance(getattr(dflash_mlx, name), ModuleType)


def test_no_source_file_is_too_long() -> None:
    folders = (ROOT / name for name in ("dflash_mlx", "cli", "metal", "tests"))
    sources = (p for folder in folders for p in folder.rglob("*") if p.suffix in SOURCE_SUFFIXES)
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in sources}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}
