"""Rows of data files: JSON lines, gzipped or not, JSON arrays, and Parquet."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, UnsupportedError

Row = Mapping[str, Any]


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, by the end of its name.

    Raises CheckpointError if it is damaged, UnsupportedError if reading it takes an extra.
    """
    reader = {".parquet": _parquet, ".json": _array}.get(path.suffix, _lines)
    try:
        rows = list(reader(path))
    except (OSError, EOFError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} cannot be read: {reason}; delete it and run the command again"
        ) from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise CheckpointError(f"{path} holds no rows; expected one JSON object each")
    return rows


def _lines(path: Path) -> Iterator[Any]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _array(path: Path) -> Iterator[Any]:
    yield from json.loads(path.read_text(encoding="utf-8"))


def _parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UnsupportedError(
            "this data set is a Parquet file, which takes pyarrow to read: run "
            "`pip install '.[bench]'` in the checkout, or ask for the sample with --offline"
        ) from error
    yield from parquet.read_table(path).to_pylist()
