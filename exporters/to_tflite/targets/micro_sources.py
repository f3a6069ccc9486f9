"""A ``.tflite`` file as C++ for TFLite Micro: the bytes as a constant array, its resolver, and a program to start from.

::

    STEM.h        for C and C++: the array, shapes, scales, zero points and sizes as constants; images as inputs
    STEM.cc       the array itself, 16-byte aligned: kernels read weights as words, and fault where they are not aligned
    STEM_ops.h    a resolver with exactly the operators of the file
    STEM_check.h  an input, and what it must give
    STEM_main.cc  a program that sets up, checks, fills the inputs, runs once and reads the outputs: yours to change
"""

import re
from collections.abc import Iterable, Sequence
from string import Template

import numpy as np

from nbcompile.core.errors import ExportError, UsageError
from nbcompile.exporters.to_tflite.file.flatbuffer import FileTensor, read_file
from nbcompile.exporters.to_tflite.file.ports import is_channels_last
from nbcompile.exporters.to_tflite.targets.check_vector import CheckVector, check_vector
from nbcompile.exporters.to_tflite.targets.micro_check import c_numbers, check_header
from nbcompile.exporters.to_tflite.targets.micro_main import main_source
from nbcompile.exporters.to_tflite.targets.micro_operators import check_ops, ops_header

C_TYPES = {
    "float32": "float",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "bool": "bool",
}
"""What inputs and outputs can be in TFLite Micro, and what C calls it."""

_BYTES_PER_LINE = 20

_HEADER = Template("""\
// $stem: a network for TFLite Micro. Written by nbcompile.
$notes#ifndef ${macro}_H_
#define ${macro}_H_

#include <stdbool.h>
#include <stdint.h>

// The .tflite file. It is constant, so that linkers leave it in flash.
#define ${macro}_DATA_BYTES $length

// The tensor arena: enough for TFLite Micro's reference kernels on a 64-bit computer, where they were run, and by
// computation for CMSIS-NN's on a Cortex-M. ESP-NN's may need scratch memory on top. The program prints what is used.
$arena
// A number x is stored as round(x / SCALE) + ZERO_POINT, clipped to the type. The last dimension varies fastest.
#define ${macro}_INPUTS $inputs
#define ${macro}_OUTPUTS $outputs
$ports
#ifdef __cplusplus
extern "C" {
#endif

extern const unsigned char ${name}_data[${macro}_DATA_BYTES];
$image
#ifdef __cplusplus
}
#endif

#endif  // ${macro}_H_
""")

_PORT = Template("""
// $comment
typedef $type ${name}_${port}_t;
#define ${prefix}_RANK $rank
#define ${prefix}_SHAPE { $shape }
#define ${prefix}_ELEMENTS $elements
#define ${prefix}_BYTES $bytes
""")

_QUANTIZED = Template("""\
#define ${prefix}_SCALE $scale
#define ${prefix}_ZERO_POINT ($zero_point)
""")

_IMAGE = Template("""
// What each byte of an image becomes in input 0: scale, mean and standard deviation, rounded as the file does. One row
// of the table for each channel, or one for all.
extern const ${name}_input_0_t ${name}_input_0_of_byte[$count][256];

// Fills input 0 from the bytes of an image: rows by columns by channels.
static inline void ${name}_prepare_input_0(const uint8_t* image, ${name}_input_0_t* input) {
  for (uint32_t i = 0; i < ${macro}_INPUT_0_ELEMENTS; ++i) {
    input[i] = ${name}_input_0_of_byte[i % $count][image[i]];
  }
}
""")

_OF_BYTE = Template("""
const ${name}_input_0_t ${name}_input_0_of_byte[$count][256] = {
$rows
};
""")

_DATA = Template("""\
// The bytes of $stem.tflite. Written by nbcompile.
#include "$file.h"

alignas(16) const unsigned char ${name}_data[${macro}_DATA_BYTES] = {
$rows
};
$image""")


def sources(
    content: bytes,
    stem: str,
    arena: int,
    notes: Sequence[str] = (),
    vector: CheckVector | None = None,
    helium: int = 0,
) -> dict[str, str]:
    """The C++ of a file, as texts by file name.

    Args:
        content: a ``.tflite`` file.
        stem: of the files' names; what C does not allow in a name becomes ``_`` in identifiers.
        arena: bytes of the tensor arena, > 0.
        notes: lines for the head of ``STEM.h``, such as how images must be prepared.
        vector: of the file; None: one of random numbers.
        helium: bytes of the arena on cores with Helium, where that is more.

    Raises:
        CheckpointError: if ``content`` cannot be read.
        ExportError: if it uses what TFLite Micro lacks.
        UsageError: if ``stem`` cannot stand in ``#include "STEM.h"``.
    """
    if re.search(r'["\\\x00-\x1f/]', stem) or not stem:
        raise UsageError(f"no C++ file can be called {stem!r}: a quote, a slash or a control character is in the name")
    file, name = read_file(content), identifier(stem)
    check_ops(file)
    ports = {f"input_{i}": file.tensors[index] for i, index in enumerate(file.inputs)}
    ports |= {f"output_{i}": file.tensors[index] for i, index in enumerate(file.outputs)}
    _check_ports(ports.values())
    vector = vector or check_vector(content)
    names = {"stem": comment(stem), "file": stem, "name": name, "macro": name.upper()}
    header = _HEADER.substitute(
        names,
        notes="".join(f"// {comment(note)}\n" for note in notes),
        length=len(content),
        arena=_arena(names["macro"], arena, helium),
        inputs=len(file.inputs),
        outputs=len(file.outputs),
        ports="".join(_port(name, port, tensor) for port, tensor in ports.items()),
        image="" if vector.of_byte is None else _IMAGE.substitute(names, count=vector.byte_rows),
    )
    of_byte = "" if vector.of_byte is None else _of_byte(names, vector.of_byte)
    return {
        f"{stem}.h": header,
        f"{stem}.cc": _DATA.substitute(names, rows=_rows(content), image=of_byte),
        f"{stem}_ops.h": ops_header(file, names["stem"], name),
        f"{stem}_check.h": check_header(vector, stem, name),
        f"{stem}_main.cc": main_source(file, stem, name, vector.byte_rows),
    }


def _arena(macro: str, arena: int, helium: int) -> str:
    """Its bytes, which a compiler chooses where they differ."""
    plain, larger = (f"#define {macro}_ARENA_BYTES {size}\n" for size in (arena, helium))
    if helium <= arena:
        return plain
    return f"#if defined(__ARM_FEATURE_MVE)  // Helium, as in a Cortex-M55\n{larger}#else\n{plain}#endif\n"


def identifier(stem: str) -> str:
    """``stem`` as C allows it in names: letters, digits and single underscores, no digit first."""
    name = re.sub("[^0-9A-Za-z]+", "_", stem).strip("_")
    return name if name[:1].isalpha() else f"model_{name}".rstrip("_")


def comment(text: str) -> str:
    """``text`` on one line that a C compiler passes over: no line ends, no backslash that would join the next line."""
    return " ".join(re.sub(r"[^ -\[\]-~]", " ", text).split())


def _port(name: str, port: str, tensor: FileTensor) -> str:
    prefix = f"{name}_{port}".upper()
    text = _PORT.substitute(
        comment=f"{port.replace('_', ' ').capitalize()}, '{comment(tensor.name)}'; {_layout(len(tensor.shape))}.",
        type=C_TYPES[tensor.dtype.name],
        name=name,
        port=port,
        prefix=prefix,
        rank=len(tensor.shape),
        shape=", ".join(map(str, tensor.shape)),
        elements=tensor.nbytes // tensor.dtype.itemsize,
        bytes=tensor.nbytes,
    )
    if tensor.quantization is None:
        return text
    # The shortest digits that give back the same float32.
    scale, zero_point = f"{tensor.quantization.scale[0]!s}f", int(tensor.quantization.zero_point[0])
    return text + _QUANTIZED.substitute(prefix=prefix, scale=scale, zero_point=zero_point)


def _of_byte(names: dict[str, str], table: np.ndarray) -> str:
    return _OF_BYTE.substitute(names, count=len(table), rows=",\n".join(f"{{\n{c_numbers(row)}\n}}" for row in table))


def _layout(rank: int) -> str:
    return "channels (PyTorch's dimension 1) last" if is_channels_last(rank) else "dimensions as in PyTorch"


def _rows(content: bytes) -> str:
    rows = (content[i : i + _BYTES_PER_LINE] for i in range(0, len(content), _BYTES_PER_LINE))
    return ",\n".join("0x" + row.hex(",").replace(",", ",0x") for row in rows)


def _check_ports(tensors: Iterable[FileTensor]) -> None:
    for tensor in tensors:
        if tensor.dtype.name not in C_TYPES:
            raise ExportError(
                f"'{tensor.name}' is an input or output of type {tensor.dtype.name}, which TFLite Micro's kernels do "
                f"not take; export with inputs and outputs of type int8 or float32"
            )
