"""Which operators TFLite Micro has, and the C++ that registers exactly those that a file uses.

A microcontroller links only the kernels that are registered: each one costs flash. The names are those of
``MicroMutableOpResolver`` in tflite-micro's ``tensorflow/lite/micro/micro_mutable_op_resolver.h``, read in 2026.
"""

from collections import Counter
from collections.abc import Iterable
from string import Template

import numpy as np

from nbcompile.core.errors import ExportError
from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp

# Names that differ from the schema's in more than capitals and underscores.
_IRREGULAR = {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
_REGULAR = """
    ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_TO_SPACE_ND BROADCAST_ARGS BROADCAST_TO
    CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS DEPTH_TO_SPACE DEPTHWISE_CONV_2D DEQUANTIZE DIV
    DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED
    GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG
    LOG_SOFTMAX LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC MAX_POOL_2D MAXIMUM MEAN MINIMUM MIRROR_PAD MUL NEG
    NOT_EQUAL PACK PAD PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE
    RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX
    SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF
    TANH TRANSPOSE TRANSPOSE_CONV UNPACK VAR_HANDLE WHILE ZEROS_LIKE
"""

RESOLVER_METHODS: dict[str, str] = _IRREGULAR | {
    # "2D" is the one word that keeps its capital: AVERAGE_POOL_2D is AddAveragePool2D.
    name: "Add" + "".join(word if word == "2D" else word.capitalize() for word in name.split("_"))
    for name in _REGULAR.split()
}
"""Operators that TFLite Micro has, as the schema calls them, to the methods that register them."""

REMEDIES = {
    "GELU": "use nn.GELU(approximate='tanh'), or train with ReLU, ReLU6 or Hardswish there",
    "CONV_3D": "TFLite Micro has kernels for images only",
    "CONV_3D_TRANSPOSE": "TFLite Micro has kernels for images only",
}
"""What to do about operators that it lacks, where there is more to say than ``_REMEDY``."""

_REMEDY = "replace it by operators that TFLite Micro has, or export for the target raspberrypi"

FLOAT_ONLY = ("EXP", "LOG", "SQRT")
"""Operators that LiteRT has for integers, and TFLite Micro for float32 only."""

MOST_PARTS = 10
"""That one CONCATENATION has, in ``micro/kernels/concatenation.cc``."""

MOST_DIMENSIONS = 5
"""That one TRANSPOSE has, in ``micro/kernels/transpose_common.cc``."""

_OPS = Template("""\
// The operators of $stem, and no others. Written by nbcompile.
#ifndef ${macro}_OPS_H_
#define ${macro}_OPS_H_

#include "tensorflow/lite/c/common.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

typedef tflite::MicroMutableOpResolver<$count> ${name}_resolver_t;

// Registers them. Each status is looked at: one that is lost shows later, as an operator that is not found.
inline TfLiteStatus ${name}_add_ops(${name}_resolver_t& resolver) {
$calls  return kTfLiteOk;
}

#endif  // ${macro}_OPS_H_
""")

_CALL = Template("""\
  if (resolver.$method() != kTfLiteOk) {  // $op, $uses
    MicroPrintf("$name: $method() failed");
    return kTfLiteError;
  }
""")


def check_ops(file: File) -> None:
    """Find out before anything is written whether TFLite Micro has every operator of ``file``, as it is used there.

    Raises:
        ExportError: if it lacks one; each is named with the first layer that uses it, and what to do.
    """
    missing = {
        op.name: file.tensors[op.outputs[0]].name.partition(";")[0]  # of several results, quantizing joins the names
        for op in reversed(file.ops)
        if op.name not in RESOLVER_METHODS
    }
    if missing:
        reasons = "; ".join(f"'{layer}' needs {op}: {REMEDIES.get(op, _REMEDY)}" for op, layer in missing.items())
        raise ExportError(f"TFLite Micro lacks {_named(missing)}. {reasons}")
    for op in file.ops:
        if reason := _over_limit(file, op):
            raise ExportError(f"'{file.tensors[op.outputs[0]].name}' {reason}")


def _over_limit(file: File, op: FileOp) -> str | None:
    """What a kernel of TFLite Micro asserts, if ``op`` does not keep it."""
    rank = len(file.tensors[op.outputs[0]].shape)
    if op.name == "CONCATENATION" and len(op.inputs) > MOST_PARTS:
        return f"has {len(op.inputs)} parts, and TFLite Micro concatenates {MOST_PARTS} at most: do it in two steps"
    if op.name == "TRANSPOSE" and rank > MOST_DIMENSIONS:
        return f"permutes {rank} dimensions, and TFLite Micro {MOST_DIMENSIONS} at most: flatten some of them before"
    if op.name in ("GATHER", "CAST") and any(i >= 0 and file.tensors[i].dtype == np.int64 for i in op.inputs):
        return "reads numbers of 64 bits, and TFLite Micro has kernels for 32: make the example input int32 (x.int())"
    return None


def ops_header(file: File, stem: str, name: str) -> str:
    """The text of ``STEM_ops.h``: a resolver of exactly the operators of ``file``, and a function that fills it.

    Args:
        file: of one graph; `check_ops` has been called.
        stem: of the files, for comments.
        name: the same as a C identifier.
    """
    uses = Counter(op.name for op in file.ops)
    calls = "".join(
        _CALL.substitute(name=name, method=RESOLVER_METHODS[op], op=op, uses="once" if n == 1 else f"{n} times")
        for op, n in sorted(uses.items())
    )
    return _OPS.substitute(stem=stem, name=name, macro=name.upper(), count=len(uses), calls=calls)


def _named(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
