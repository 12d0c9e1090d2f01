"""How weights are stored: the choices of a conversion, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import UsageError

BITS = (2, 3, 4, 5, 6, 8)
DTYPES = ("float32", "bfloat16", "float16")
# Per mode of mlx-lm: the group sizes it has, the usual one first, and its bits.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((64, 32, 128), BITS),
    "mxfp4": ((32,), (4,)),
    "mxfp8": ((32,), (8,)),
    "nvfp4": ((16,), (4,)),
}
RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
# Parts of a draft that take their own bits; the norms and what DFlash 2 adds are never quantised.
GROUPS = {
    "fc": ("fc",),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
FC_BITS = 8  # everything that the draft knows of the context goes through it


@dataclass(frozen=True)
class TargetRecipe:
    """How mlx-lm stores a target.

    Attributes:
        bits: None leaves the choice to `mode` and `recipe`, and without them quantises nothing.
        group_size: weights that share a scale; by default the mode's usual one.
        mode: affine, mxfp4, mxfp8 or nvfp4.
        recipe: one of mlx-lm's mixtures of bits.
        dtype: of what is not quantised; by default what the config states.
    """

    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    recipe: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        _check("mode", self.mode, tuple(MODES))
        sizes, bits = MODES[self.mode]
        _check("dtype", self.dtype, DTYPES)
        _check("recipe", self.recipe, RECIPES)
        _check(f"bits in mode {self.mode}", self.bits, bits)
        _check(f"group size in mode {self.mode}", self.group_size, sizes)
        if self.recipe and (self.mode != "affine" or self.bits):
            raise UsageError(f"recipe {self.recipe} chooses mode and bits; leave out both")
        if self.group_size and not self.quantises:
            raise UsageError("a group size needs bits, a mode or a recipe")

    @property
    def quantises(self) -> bool:
        """Whether any weight gets fewer bits."""
        return self.bits is not None or self.mode != "affine" or self.recipe is not None

    def as_dict(self) -> dict[str, Any]:
        """What was asked for, as stored in pair.json."""
        stated = {"bits": self.bits, "group_size": self.group_size, "recipe": self.recipe}
        mode = self.mode if self.quantises and not self.recipe else None
        stated |= {"mode": mode, "dtype": self.dtype}
        return {name: value for name, value in stated.items() if value is not None}


@dataclass(frozen=True)
class DraftRecipe:
    """How a draft is stored: affine groups for its linear layers, or none.

    Attributes:
        fc, attention, mlp: bits of these layers; None leaves them in `dtype`.
        dtype: float32 or bfloat16 for the rest; by default the file's own, bfloat16 for float16.
    """

    fc: int | None = None
    attention: int | None = None
    mlp: int | None = None
    group_size: int = 64
    dtype: str | None = None

    def __post_init__(self) -> None:
        for group in GROUPS:
            _check(f"draft bits of {group}", self.bits(group), BITS)
        _check("draft group size", self.group_size, MODES["affine"][0])
        if self.dtype == "float16":
            raise UsageError(
                "a draft in float16 accepts next to nothing: the target's hidden states overflow "
                "it in the fusion; use bfloat16 or float32"
            )
        _check("draft dtype", self.dtype, DTYPES)

    @classmethod
    def of(
        cls,
        bits: int | None,
        *,
        fc: int | None = None,
        group_size: int | None = None,
        dtype: str | None = None,
    ) -> DraftRecipe:
        """One number for all layers; `fc` then has at least `FC_BITS` unless stated itself."""
        if bits is not None and fc is None:
            fc = max(bits, FC_BITS)
        return cls(fc=fc, attention=bits, mlp=bits, group_size=group_size or 64, dtype=dtype)

    @property
    def quantises(self) -> bool:
        """Whether any layer gets fewer bits."""
        return any(self.bits(group) is not None for group in GROUPS)

    def bits(self, group: str) -> int | None:
        """Of one of `GROUPS`."""
        return {"fc": self.fc, "attention": self.attention, "mlp": self.mlp}[group]

    def layer(self, path: str) -> int | None:
        """Bits of the layer at `path`; None where it stays as it is."""
        last = path.rpartition(".")[2]
        return next((self.bits(g) for g, names in GROUPS.items() if last in names), None)

    def as_dict(self) -> dict[str, Any]:
        """What was asked for, as stored in pair.json."""
        stated: dict[str, Any] = {group: self.bits(group) for group in GROUPS}
        if self.quantises:
            stated["group_size"] = self.group_size
        stated["dtype"] = self.dtype
        return {name: value for name, value in stated.items() if value is not None}


def no_layer_fits(group_size: int) -> UsageError:
    """The error for bits that would change nothing."""
    return UsageError(
        f"no layer has rows of whole groups of {group_size}; use a smaller group size, or no bits"
    )


def _check(what: str, value: object, allowed: tuple[object, ...]) -> None:
    if value is not None and value not in allowed:
        expected = ", ".join(map(str, sorted(allowed, key=str)))
        raise UsageError(f"{what} is {value}, expected one of {expected}")
