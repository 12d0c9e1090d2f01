"""The rules by which `mx.fast.metal_kernel` turns a kernel's body into a Metal function.

They are those of MLX's mlx/backend/common/metal_kernel.cpp, and the tests compare the text
made here with the text the installed MLX prints, character by character.  In short:

- an input of fewer than 8 elements is passed in `constant` memory, the others in `device`;
  an input without dimensions is a reference, the others are pointers;
- `NAME_shape`, `NAME_strides` and `NAME_ndim` follow input NAME when the body contains the
  word, and only if the input has dimensions;
- each of 20 thread attributes is appended when its name occurs anywhere in the body.

The header is not searched, only the body is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

CONSTANT_BELOW = 8  # elements; smaller inputs live in the constant address space

TYPE_NAMES = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.float32: "float",
    mx.complex64: "complex64_t",
}

ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}

Template = Sequence[tuple[str, bool | int | mx.Dtype]]


@dataclass(frozen=True)
class Parameter:
    """One parameter of the function: `kind` is input, shape, strides, ndim, output or attribute.

    `index` is the input's or output's place, -1 for an attribute; `name` is the C name.
    """

    kind: str
    name: str
    index: int
    declaration: str


@dataclass(frozen=True)
class Signature:
    """The function MLX would compile: its name, parameters and template arguments as text."""

    function: str
    parameters: tuple[Parameter, ...]
    template_head: str  # "template <typename T, int N>\n" or ""
    template_args: str  # "<float, 4>" or ""

    def prologue(self) -> str:
        """The text between the header and the body."""
        listed = "".join(
            f"  {p.declaration}{self._after(i)}" for i, p in enumerate(self.parameters)
        )
        return f"{self.template_head}[[kernel]] void {self.function}(\n{listed}"

    def _after(self, i: int) -> str:
        """MLX's rule, which closes the list too early if there are `_shape`s but no attributes."""
        kinds = [p.kind for p in self.parameters]
        arrays = kinds.count("input") + kinds.count("output")
        if kinds[i] == "output" and "attribute" not in kinds:
            return ",\n" if i < arrays - 1 else ") {\n"
        return ",\n" if i < len(kinds) - 1 else ") {\n"

    def epilogue(self) -> str:
        """The text after the body."""
        text = "\n}\n"
        if self.template_args:
            full = self.function + self.template_args
            text += (
                f'\ntemplate [[host_name("{self.function}")]] [[kernel]] decltype({full}) {full};\n'
            )
        return text

    def instance(self) -> str:
        return self.function + self.template_args

    def text(self, header: str, source: str) -> str:
        """The whole text as MLX hands it to Metal (after its own utils.h)."""
        return header + self.prologue() + source + self.epilogue()


def type_name(dtype: mx.Dtype) -> str:
    if dtype not in TYPE_NAMES:
        raise ValueError(f"Metal has no type for {dtype}")
    return TYPE_NAMES[dtype]


def build_signature(
    name: str,
    source: str,
    input_names: Sequence[str],
    inputs: Sequence[mx.array],
    output_names: Sequence[str],
    output_dtypes: Sequence[mx.Dtype],
    template: Template = (),
    atomic_outputs: bool = False,
) -> Signature:
    """The signature for these arrays.  The counts of names and arrays must have been checked."""
    args = "<" + ", ".join(_argument(value) for _, value in template) + ">" if template else ""
    function = "custom_kernel_" + name
    if args:
        function += "_" + _template_hash(args)
    function += "".join("_" + type_name(x.dtype) + _passing(x) for x in inputs)
    function += "".join("_" + type_name(dtype) for dtype in output_dtypes)
    buffers = _input_parameters(source, input_names, inputs)
    for i, (out, dtype) in enumerate(zip(output_names, output_dtypes, strict=True)):
        kind = f"atomic<{type_name(dtype)}>" if atomic_outputs else type_name(dtype)
        declaration = f"device {kind}* {out} [[buffer({len(buffers)})]]"
        buffers.append(Parameter("output", out, i, declaration))
    attributes = [
        Parameter("attribute", word, -1, f"{kind} {word} [[{word}]]")
        for word, kind in ATTRIBUTES.items()
        if word in source
    ]
    head = ", ".join(f"{_kind(value)} {word}" for word, value in template)
    head = f"template <{head}>\n" if template else ""
    return Signature(function, (*buffers, *attributes), head, args)


def _input_parameters(
    source: str, names: Sequence[str], inputs: Sequence[mx.array]
) -> list[Parameter]:
    found: list[Parameter] = []

    def add(kind: str, name: str, index: int, text: str) -> None:
        found.append(Parameter(kind, name, index, f"{text} {name} [[buffer({len(found)})]]"))

    for i, (name, x) in enumerate(zip(names, inputs, strict=True)):
        space = "constant" if x.size < CONSTANT_BELOW else "device"
        add("input", name, i, f"const {space} {type_name(x.dtype)}{'*' if x.ndim else '&'}")
        if not x.ndim:
            continue
        if f"{name}_shape" in source:
            add("shape", f"{name}_shape", i, "const constant int*")
        if f"{name}_strides" in source:
            add("strides", f"{name}_strides", i, "const constant int64_t*")
        if f"{name}_ndim" in source:
            add("ndim", f"{name}_ndim", i, "const constant int&")
    return found


def _passing(x: mx.array) -> str:
    if x.ndim == 0:
        return "s"
    return "c" if x.size < CONSTANT_BELOW else ""


def _kind(value: bool | int | mx.Dtype) -> str:
    if isinstance(value, bool):
        return "bool"
    return "int" if isinstance(value, int) else "typename"


def _argument(value: bool | int | mx.Dtype) -> str:
    return type_name(value) if isinstance(value, mx.Dtype) else str(int(value))


def _template_hash(args: str) -> str:
    """`<float, 4>` -> `_float_4`: what MLX puts into the function's name."""
    for mark in (", ", "<", ">", "-"):
        args = args.replace(mark, "_")
    return args[:-1]
