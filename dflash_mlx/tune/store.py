"""Measured costs on disk: one JSON file per machine, pair and way of running it.

A file that cannot be read is no misfortune: a line says so, and the times are measured again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..costs import CostCurve
from ..errors import CheckpointError
from ..fields import Fields
from ..fitting import size_of
from ..kv_quantised import KVBits
from ..loading import Pair
from ..machine import this_machine
from ..paths import cache_root, write_whole

log = logging.getLogger("dflash_mlx")

FORMAT = 1


@dataclass(frozen=True)
class Setting:
    """What times depend on.

    Attributes:
        machine: chip or processor.
        device: metal, cuda or cpu.
        target_bytes, draft_bytes: size of the weights, which tells quantisations apart.
        kv: bits and group size of the target's keys and values, or full.
    """

    machine: str
    device: str
    mlx: str
    target: str
    target_bytes: int
    draft: str
    draft_bytes: int
    dtype: str
    draft_dtype: str
    block: int
    kernels: str
    compiled: bool
    kv: str = "full"

    @property
    def file(self) -> Path:
        """Where times measured in this setting are kept."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return folder() / f"{digest[:16]}.json"


@dataclass(frozen=True)
class Record:
    """Times and what they were measured on."""

    setting: Setting
    curve: CostCurve

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": FORMAT, **asdict(self.setting), "seconds": self.curve.as_dict()}

    @classmethod
    def from_dict(cls, raw: object, source: str) -> Record:
        """What `as_dict` made; raises CheckpointError where it is something else."""
        if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
            raise CheckpointError(f"{source}: not what `dflash-mlx tune export` writes")
        fields = Fields(raw, source)
        kinds = {"str": str, "int": int, "bool": bool}
        setting = Setting(
            **{
                name: fields.need(name, kinds[str(kind)])
                for name, kind in Setting.__annotations__.items()
                if name != "kv"  # files of before it was a choice have none
            },
            kv=fields.get("kv", str, "full"),
        )
        return cls(setting, CostCurve.from_dict(fields.need("seconds", dict), source))


def folder() -> Path:
    """Where records are kept; it need not exist yet."""
    return cache_root() / "tune"


def setting_of(pair: Pair) -> Setting:
    """What times of `pair` depend on, here and now."""
    assert pair.draft is not None
    machine = this_machine()
    return Setting(
        machine=machine.name,
        device=machine.kind,
        mlx=version("mlx"),
        target=pair.name if pair.ranks.size == 1 else f"{pair.name} {pair.ranks.description}",
        target_bytes=size_of(pair.target.model),
        draft=pair.draft_name or "",
        draft_bytes=size_of(pair.draft),
        dtype=_name(pair.target.dtype),
        draft_dtype=_name(pair.draft.dtype),
        block=pair.draft.config.block_size,
        kernels=pair.kernels.mode if pair.kernels.active else "off",
        compiled=pair.compiles,
        kv=_kept(pair.target.kv) + (f" {_kept(pair.draft.kv)}" if pair.draft.kv else ""),
    )


def _kept(kv: KVBits | None) -> str:
    return f"{kv.bits}/{kv.group}" if kv else "full"


def read(path: Path) -> Record | None:
    """A record; None, with a warning, where the file is no record, and without where none is."""
    try:
        return Record.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, CheckpointError) as error:
        log.warning("%s is left out: %s", path, " ".join(str(error).split()))
        return None


def write(record: Record) -> Path:
    """Keep a record, whole or not at all."""
    path = record.setting.file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record.as_dict(), indent=1))
    return path


def records() -> Iterator[Record]:
    """All that are kept and can be read."""
    for path in sorted(folder().glob("*.json")):
        record = read(path)
        if record is not None:
            yield record


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
