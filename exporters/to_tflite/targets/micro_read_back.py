"""The C++ of a file, read back: it has to say what the file says, or nothing is written."""

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from nbcompile.core.errors import ExportError
from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileTensor, read_file
from nbcompile.exporters.to_tflite.targets.check_vector import CheckVector
from nbcompile.exporters.to_tflite.targets.micro_check import checksum, kept_step
from nbcompile.exporters.to_tflite.targets.micro_operators import RESOLVER_METHODS
from nbcompile.exporters.to_tflite.targets.micro_sources import C_TYPES, identifier


def require_same(
    texts: Mapping[str, str], content: bytes, stem: str, arena: int, vector: CheckVector, helium: int = 0
) -> None:
    """Compare the texts with the file that they are of.

    Args:
        texts: of `micro_sources.sources`.
        content: the ``.tflite`` file.
        stem: of the texts' names.
        arena: bytes of the tensor arena.
        vector: that the device is checked with.
        helium: bytes of the arena on cores with Helium, where that is more.

    Raises:
        ExportError: naming the first text that says something else.
    """
    file, name = read_file(content), identifier(stem)
    for ending, check in _CHECKS.items():
        told = [*check(texts[stem + ending], file, content, name, arena, vector)]
        if ending == ".h":
            sizes = re.findall(rf"#define {name.upper()}_ARENA_BYTES (\d+)", texts[stem + ending])
            told.append(("arenas of bytes", sizes[:-1], [str(helium)] * (helium > arena)))
        for what, said, meant in told:
            if said != meant:
                raise ExportError(
                    f"{stem}{ending} has {what} {said}, and the file {meant}: it was not written, and this is a "
                    "mistake of nbcompile's"
                )


_Said = Iterator[tuple[str, object, object]]
"""What is said, what the text says, and what it has to."""


def _ports(file: File) -> Iterator[tuple[str, FileTensor]]:
    for kind, indices in (("input", file.inputs), ("output", file.outputs)):
        yield from ((f"{kind}_{i}", file.tensors[index]) for i, index in enumerate(indices))


def _header(text: str, file: File, content: bytes, name: str, arena: int, vector: CheckVector) -> _Said:
    said = {key: value.strip("{( )}") for key, value in re.findall(rf"#define {name.upper()}_(\w+) (.+)", text)}
    yield "a file of bytes", said.get("DATA_BYTES"), str(len(content))
    yield "an arena of bytes", said.get("ARENA_BYTES"), str(arena)
    yield "inputs", said.get("INPUTS"), str(len(file.inputs))
    yield "outputs", said.get("OUTPUTS"), str(len(file.outputs))
    for port, tensor in _ports(file):
        key = port.upper()
        yield f"{port} of type", f"typedef {C_TYPES[tensor.dtype.name]} {name}_{port}_t;" in text, True
        yield f"{port} of shape", said.get(f"{key}_SHAPE"), ", ".join(map(str, tensor.shape))
        yield f"{port} of bytes", said.get(f"{key}_BYTES"), str(tensor.nbytes)
        if tensor.quantization is not None:
            scale = said.get(f"{key}_SCALE", "nan").removesuffix("f")
            yield f"{port} of scale", type(tensor.quantization.scale[0])(scale), tensor.quantization.scale[0]
            yield f"{port} of zero point", said.get(f"{key}_ZERO_POINT"), str(int(tensor.quantization.zero_point[0]))


def _data(text: str, file: File, content: bytes, name: str, arena: int, vector: CheckVector) -> _Said:
    held = bytes.fromhex("".join(re.findall("0x([0-9a-f]{2})", text)))
    yield "bytes", len(held), len(content)
    yield "the file's own bytes:", held == content, True
    if vector.of_byte is not None:
        yield "the preprocessing of every byte:", _is_in(f"{name}_input_0_of_byte", text, vector.of_byte), True


def _resolver(text: str, file: File, content: bytes, name: str, arena: int, vector: CheckVector) -> _Said:
    methods = sorted({RESOLVER_METHODS[op.name] for op in file.ops})
    yield "operators", sorted(re.findall(r"resolver\.(\w+)\(\)", text)), methods
    yield "room for operators:", re.findall(r"MicroMutableOpResolver<(\d+)>", text), [str(len(methods))]


def _checked(text: str, file: File, content: bytes, name: str, arena: int, vector: CheckVector) -> _Said:
    for i, one in enumerate(vector.inputs):
        said = re.findall(rf"#define {name.upper()}_CHECK_INPUT_{i}_SUM (\d+)u", text)
        yield f"input_{i} of sum", said, [str(checksum(one.value))]
        yield f"input_{i} of values:", _is_in(f"{name}_check_input_{i}", text, one.kept), True
    for i, y in enumerate(vector.outputs):
        kept = y.ravel()[:: kept_step(y)]
        yield f"output_{i} of values:", _is_in(f"{name}_check_output_{i}", text, kept), True


def _is_in(array: str, text: str, values: np.ndarray) -> bool:
    """Whether the C array has ``values``."""
    body = re.search(rf"\b{array}(?:\[\d+\])+ = {{(.*?)}};", text, re.DOTALL)
    texts = re.findall(r"-?\d[\w.+-]*", body[1]) if body else []
    said, meant = np.array([float(text.removesuffix("f")) for text in texts]), values.ravel()
    return said.size == meant.size and bool(
        ((said.astype(meant.dtype) if meant.dtype.kind == "f" else said) == meant).all()
    )


def _program(text: str, file: File, content: bytes, name: str, arena: int, vector: CheckVector) -> _Said:
    for port, _ in _ports(file):
        kind, number = port.split("_")
        yield f"{port} read:", f"typed_{kind}_tensor<{name}_{port}_t>({number})" in text, True


_CHECKS: dict[str, Callable[[str, File, bytes, str, int, CheckVector], _Said]] = {
    ".h": _header, ".cc": _data, "_ops.h": _resolver, "_check.h": _checked, "_main.cc": _program
}  # fmt: skip
