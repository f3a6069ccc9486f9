"""The text of ``STEM_check.h``, in C, and of what ``STEM_main.cc`` does with it; see `check_vector`."""

import math
from string import Template

import numpy as np

from nbcompile.exporters.to_tflite.targets.check_vector import MOST_BYTES, CheckInput, CheckVector

FLOAT_SHARE = 1e-4
"""Of the largest number of an output in float32: by so much each may differ, since others sum in another order."""

_HEADER = Template("""\
// Inputs of $stem, and what TFLite Micro made of them on the computer that wrote this. Written by nbcompile.
#ifndef ${macro}_CHECK_H_
#define ${macro}_CHECK_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "$stem.h"

// -D${macro}_CHECK=0 leaves the check out of the program, and these bytes out of its flash.
#define ${macro}_CHECK_BYTES $bytes
#ifndef ${macro}_CHECK
#define ${macro}_CHECK 1
#endif

#if ${macro}_CHECK

// By how many steps integers may differ: kernels made for a chip may round otherwise than those of the computer.
#ifndef ${macro}_CHECK_STEPS
#define ${macro}_CHECK_STEPS $steps
#endif

// FNV-1a, of what an input holds.
static inline uint32_t ${name}_check_sum(const void* data, size_t bytes) {
  const uint8_t* x = (const uint8_t*)data;
  uint32_t sum = 2166136261u;
  for (size_t i = 0; i < bytes; ++i) {
    sum = (sum ^ x[i]) * 16777619u;
  }
  return sum;
}
$parts
#endif  // ${macro}_CHECK

#endif  // ${macro}_CHECK_H_
""")

_KEPT = Template("""
// Input $i: $what.
static const $type ${name}_check_input_$i[$count] = {
$rows
};

// Fills input $i; whether it then holds what it held on the computer.
#define ${macro}_CHECK_INPUT_${i}_SUM ${sum}u
static inline bool ${name}_check_fill_$i(${name}_input_${i}_t* input) {
$body  return ${name}_check_sum(input, ${macro}_INPUT_${i}_BYTES) == ${macro}_CHECK_INPUT_${i}_SUM;
}
""")

_REPEAT = Template("""\
  for (uint32_t i = 0; i < ${macro}_INPUT_${i}_ELEMENTS; ++i) {
    input[i] = $value;
  }
""")

_OUTPUT = Template("""
// Output $i$every.
#define ${macro}_CHECK_OUTPUT_${i}_KEPT $count
#define ${macro}_CHECK_OUTPUT_${i}_EVERY $step
static const ${name}_output_${i}_t ${name}_check_output_$i[$count] = {
$rows
};

// How many of these elements of output $i are wrong; which is the first goes to `first`.
static inline size_t ${name}_check_wrong_$i(const ${name}_output_${i}_t* output, size_t* first) {
  size_t wrong = 0;
  for (size_t k = $count; k-- > 0;) {
    if ($differs) {
      ++wrong;
      *first = $index;
    }
  }
  return wrong;
}
""")


def check_header(vector: CheckVector, stem: str, name: str) -> str:
    """The text of ``STEM_check.h``.

    Args:
        vector: to be checked.
        stem: of the files' names.
        name: the same as a C identifier.
    """
    names = {"stem": stem, "name": name, "macro": name.upper()}
    parts = [_input(names, i, one, vector.byte_rows) for i, one in enumerate(vector.inputs)]
    kept = [kept_step(y) for y in vector.outputs]
    for i, (y, step) in enumerate(zip(vector.outputs, kept, strict=True)):
        parts.append(_output(names, i, y.ravel()[::step], step))
    held = [one.kept for one in vector.inputs]
    held += [y.ravel()[::step] for y, step in zip(vector.outputs, kept, strict=True)]
    return _HEADER.substitute(names, bytes=sum(x.nbytes for x in held), steps=vector.steps, parts="".join(parts))


def kept_step(y: np.ndarray) -> int:
    """Each how many-th element of an output is kept; no divisor of a dimension: all channels are seen."""
    step = -(-y.nbytes // MOST_BYTES)
    while step > 1 and any(math.gcd(step, size) > 1 for size in y.shape):
        step += 1
    return max(step, 1)


def checksum(x: np.ndarray) -> int:
    """FNV-1a (Fowler, Noll and Vo) of the bytes of ``x``, 32 bits."""
    value = 2166136261
    for byte in x.tobytes():
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value


def c_numbers(values: np.ndarray, width: int = 116) -> str:
    """``values`` as C writes them, on lines of ``width`` characters; those of float32 with the fewest digits."""
    lines, line = [], ""
    for text in map(_literal, values.ravel()):
        if line and len(line) + len(text) > width:
            lines.append(line.rstrip())
            line = ""
        line += f"{text}, "
    return "\n".join([*lines, line.rstrip(", ")])


def _literal(value: np.generic) -> str:
    return f"{value!s}f" if value.dtype.kind == "f" else str(int(value))


def _input(names: dict[str, str], i: int, one: CheckInput, byte_rows: int) -> str:
    kept, name = f"{names['name']}_check_input_{i}", names["name"]
    what = "bytes of an image, rows by columns by channels" if byte_rows else "as the file stores it"
    if one.times > 1:
        what += f"; every {one.times}th row and column" if one.value.ndim == 4 else f"; every {one.times}th value"
    if one.times == 1:
        body = f"{name}_prepare_input_{i}({kept}, input)" if byte_rows else f"memcpy(input, {kept}, sizeof({kept}))"
        body = f"  {body};\n"
    else:
        value = f"{kept}[{_place(one)}]"
        value = f"{name}_input_{i}_of_byte[i % {byte_rows}][{value}]" if byte_rows else value
        body = _REPEAT.substitute(names, i=i, value=value)
    return _KEPT.substitute(
        names,
        i=i,
        what=what,
        type="uint8_t" if byte_rows else f"{name}_input_{i}_t",
        count=one.kept.size,
        rows=c_numbers(one.kept),
        sum=checksum(one.value),
        body=body,
    )


def _place(one: CheckInput) -> str:
    """In C, where in what is kept the value of element ``i`` stands."""
    if one.value.ndim != 4:
        return f"i / {one.times}"
    (_, _, width, channels), kept = one.value.shape, one.kept.shape[2]
    row, column = f"i / {width * channels} / {one.times}", f"i / {channels} % {width} / {one.times}"
    return f"({row} * {kept} + {column}) * {channels} + i % {channels}"


def _output(names: dict[str, str], i: int, kept: np.ndarray, step: int) -> str:
    index = "k" if step == 1 else f"k * {step}"
    element, expected = f"output[{index}]", f"{names['name']}_check_output_{i}[k]"
    if kept.dtype.kind == "f":
        most = _literal(np.float32(FLOAT_SHARE * float(np.abs(kept).max())))
        difference = f"{element} - {expected}"
        differs = f"!({difference} <= {most} && {expected} - {element} <= {most})"  # NaN does, too
    elif kept.dtype.itemsize > 2 or kept.dtype.kind == "b":
        differs = f"{element} != {expected}"
    else:
        steps = f"{names['macro']}_CHECK_STEPS"
        differs = f"{element} - {expected} > {steps} || {expected} - {element} > {steps}"
    return _OUTPUT.substitute(
        names,
        i=i,
        every="" if step == 1 else f", each {step}th element of it",
        count=kept.size,
        step=step,
        rows=c_numbers(kept),
        index=index,
        differs=differs,
    )
