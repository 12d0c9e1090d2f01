"""Where each kernel should be faster than MLX's own operation, by what is known of the chip.

By arithmetic and published measurements (docs/kernels.md), not by timings of these kernels:
`dflash-mlx bench kernels` makes those, and rounds of real decoding are raced besides
(`trial.py`).
"""

from __future__ import annotations

from .chip import Chip

M3, M5 = 15, 17


def quantised(chip: Chip, *, rows: int) -> bool:
    """A product by simdgroup matrices of 8 rows, the weight read once.

    MLX reads it once for up to 5 rows since the M3. From the M5 on its tiles of 32 rows run on the
    neural accelerators, and take over at 13 rows.
    """
    return 6 <= rows <= (12 if chip.generation >= M5 else 16)


def quantised_scalar(chip: Chip, *, rows: int) -> bool:
    """A product without matrices: M1 and M2, where MLX reads the weight for every row."""
    return chip.generation < M3 and 2 <= rows <= 5


def dense(chip: Chip, *, rows: int) -> bool:
    """As `quantised`; MLX has 5 rows per reading up to 15 rows since the M3, and 64-row tiles."""
    if chip.generation >= M5:
        return False
    return (6 if chip.generation >= M3 else 2) <= rows <= 16


def head(chip: Chip, *, rows: int, count: int, packed: bool) -> bool:
    """The largest logits alone. Where MLX has to choose several it sorts the whole vocabulary."""
    if count > 1:
        return rows > 1
    return quantised(chip, rows=rows) if packed else dense(chip, rows=rows)


def experts(chip: Chip, *, rows: int) -> bool:
    """Experts chosen by several rows: MLX reads them once for each."""
    return 2 <= rows <= 16


def attention(chip: Chip, *, rows: int, group: int, slots: int) -> bool:
    """Keys and values read once for `group` query heads and all rows.

    MLX's one-pass kernel takes up to 8 rows and 32 rows times heads; it reads the keys for each of
    them, which caches hide while the context is short.
    """
    return rows > 1 and (rows > 8 or rows * group > 32 or slots >= 1024)


def always(chip: Chip, *, rows: int) -> bool:
    """Many small dispatches become one."""
    return rows > 1
