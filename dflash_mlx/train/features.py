"""The target's hidden states behind its tapped layers, for whole texts.

They are computed when needed, or once and kept in bfloat16 (float16 overflows): most of a training
then never runs the target. Their sizes differ by dimension by a factor of a thousand, which an
optimiser does not take well; so the network reads them divided by a scale per dimension, which
goes into `fc` when the draft is exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx

from ..targets.base import Target
from .arrays import read_arrays, write_arrays
from .packing import Document, Pack

SHARD = 64  # texts of a file
CHUNK = 2048  # tokens of a pass of the target
SCALED_ON = 64  # texts that the scale is taken from
SCALE = "scale.safetensors"


def compute(target: Target, document: Document) -> mx.array:
    """The features of a text [S, taps * hidden_size], evaluated."""
    cache = target.new_cache()
    made = []
    for first in range(0, len(document.ids), CHUNK):
        ids = mx.array(document.ids[first : first + CHUNK])[None]
        state = cache.begin(first, ids.shape[1], fixed=False)
        _, features, state = target.forward(ids, first, state)
        assert features is not None
        cache.update(state)
        cache.commit(ids.shape[1])
        mx.eval(features, cache.arrays())
        made.append(features[0])
    return mx.concatenate(made)


def stored_bytes(target: Target, documents: Sequence[Document]) -> int:
    """What the features of these texts take on disk."""
    tokens = sum(len(d.ids) for d in documents)
    return tokens * len(target.taps) * target.hidden_size * 2


class Features:
    """Features of texts, from a folder where they are and from the target where they are not.

    Args:
        target: with the draft's taps.
        folder: where stored ones are; None computes all.
    """

    def __init__(self, target: Target, folder: Path | None = None) -> None:
        self.target = target
        self._files = index(folder) if folder else {}

    def __call__(self, document: Document) -> mx.array:
        """[S, taps * hidden_size] as the target makes them."""
        file = self._files.get(document.key)
        if file is None:
            return compute(self.target, document)
        # The file is read as far as is used, and let go with the array.
        return read_arrays(file)[document.key]

    def scaled(self, scale: mx.array, pack: Pack) -> mx.array:
        """Those of a pack [S, taps * hidden_size], divided by `scale`, float32."""
        return mx.concatenate([self(d) for d in pack.documents]).astype(mx.float32) / scale


def index(folder: Path) -> dict[str, Path]:
    """Which file holds the features of which text."""
    files = sorted(folder.glob("texts-*.safetensors"))
    return {key: file for file in files for key in read_arrays(file)}


def store(target: Target, documents: Sequence[Document], folder: Path) -> Iterator[tuple[int, int]]:
    """Compute and write what `folder` does not hold yet.

    Yields texts done and texts to do behind every file; files are there whole or not at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = index(folder)
    missing = [d for d in documents if d.key not in known]
    number = len(list(folder.glob("texts-*.safetensors")))
    for first in range(0, len(missing), SHARD):
        part = missing[first : first + SHARD]
        arrays = {d.key: compute(target, d).astype(mx.bfloat16) for d in part}
        write_arrays(folder / f"texts-{number:05}.safetensors", arrays)
        number += 1
        yield first + len(part), len(missing)


def scale_of(features: Features, documents: Sequence[Document], folder: Path) -> mx.array:
    """The usual size of each dimension [taps * hidden_size], measured once and kept in `folder`."""
    file = folder / SCALE
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        step = max(1, len(documents) // SCALED_ON)
        write_arrays(file, {"scale": measure(features, documents[::step][:SCALED_ON])})
    return read_arrays(file)["scale"]


def measure(features: Features, documents: Sequence[Document]) -> mx.array:
    """Root mean square per dimension over what answers, float32."""
    total, count = mx.array(0.0), 0
    for document in documents:
        # Not from the first tokens of a text, where a few dimensions are huge.
        rows = features(document)[document.answer :].astype(mx.float32)
        total, count = total + (rows * rows).sum(axis=0), count + len(rows)
        mx.eval(total)
    return mx.maximum(mx.sqrt(total / count), 1e-6)
