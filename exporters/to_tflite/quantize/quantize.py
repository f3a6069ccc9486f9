"""From a float ``.tflite`` file in memory to one with integers, with TensorFlow's own quantizers.

=============  =============  ============  ========================================================================
scheme         weights        activations   made by
=============  =============  ============  ========================================================================
``float32``    float32        float32       nothing is changed
``float16``    float16        float32       `weights_only`: half the size
``dynamic``    int8           float32       `weights_only`: a quarter of the size, integers inside a layer
``int8``       int8           int8          TensorFlow's MLIR quantizer
``int16x8``    int8           int16         TensorFlow's older quantizer: the MLIR one makes files that do not load
=============  =============  ============  ========================================================================

The ranges of activations are ours (`quantize.ranges`), and written into the float file, where both quantizers look for
them. TensorFlow's own calibration is not used: it knows minimum and maximum only, and takes the range of a sum for
that of its first term, whose memory the sum reuses.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nbcompile.core.errors import ExportError, UsageError
from nbcompile.exporters.to_tflite.file.flatbuffer import File, pack, read_file, unpack
from nbcompile.exporters.to_tflite.file.options import Recipe
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import quiet_tensorflow, tf
from nbcompile.exporters.to_tflite.file.stderr import stderr_kept
from nbcompile.exporters.to_tflite.quantize.float_layers import listed, matching, results_of
from nbcompile.exporters.to_tflite.quantize.ranges import Ranges, layer_of_tensor, measure_ranges
from nbcompile.exporters.to_tflite.quantize.weights_only import to_dynamic, to_float16
from nbcompile.exporters.to_tflite.run.interpreters import Sample

_NAMELESS = "TRANSPOSE_CONV"
"""TensorFlow renames these before it looks for the names of layers that stay float: all of them do, or none."""

_COMPARISONS = ("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL")

_WIDE = 127.0
"""From this on, a step of 8 bits may be 1: of a constant's largest value, or of a range."""


def quantize(
    model: FloatModel,
    samples: Sequence[Sample],
    *,
    scheme: str = "int8",
    io: str = "int8",
    ranges: str | Ranges = "minmax",
    per_channel: bool = True,
    dense_per_channel: bool = True,
    float_layers: Sequence[str] = (),
    float_kinds: Collection[str] = (),
) -> bytes:
    """``model`` as a file of ``scheme``.

    Args:
        model: the float file.
        samples: calibration set in the file's layout, batch 1, float32; needed where activations are integers and
            ``ranges`` is an estimator's name.
        scheme: one of `file.options.SCHEMES`.
        io: inputs and outputs of integer schemes: ``int8`` stands for the scheme's own integers (int16 in
            ``int16x8``), ``float`` for float32; the other schemes always have float32.
        ranges: an estimator's name (`quantize.ranges`), or ranges that are measured already.
        per_channel: whether weights have one scale per output channel; else one per layer, for old runtimes.
        dense_per_channel: the same of fully connected layers alone.
        float_kinds: operators, by the schema's names, that stay in float32 in ``int8``.
        float_layers: names of layers, or globs of them, that stay in float32; a module's name stands for all inside.
            Where one is a transposed convolution, all of these stay.

    Raises:
        UsageError: if an option is unknown, a name matches no layer, or there are no samples.
        PreconditionError: if a value is NaN or infinite on a sample; the layer is named.
        ExportError: if TensorFlow cannot quantize the file; with what it said.
    """
    recipe = Recipe(scheme, io)
    if scheme == "int16x8" and float_layers:
        raise UsageError(
            "int16x8 cannot keep single layers in float: TensorFlow's quantizer has no such choice; use int8"
        )
    if scheme == "int16x8" and not per_channel:
        raise UsageError("int16x8 has weights per channel: TensorFlow's quantizer fails otherwise; use int8")
    kept_float = matching(model, float_layers)
    if scheme == "float32":
        return model.content
    if scheme == "float16":
        return to_float16(model.content, except_for=kept_float)
    if scheme == "dynamic":
        return to_dynamic(
            model.content, except_for=kept_float, per_channel=per_channel, dense_per_channel=dense_per_channel
        )
    if isinstance(ranges, str):
        ranges = measure_ranges(model, samples, ranges, levels=recipe.levels)
    content = _with_ranges(model.content, ranges)
    if scheme == "int8":
        kept_float |= results_of(model, float_kinds) | _wide_comparisons(read_file(model.content), ranges)
        return _to_int8(content, io, per_channel, dense_per_channel, kept_float)
    return _to_int16(replace(model, content=content), io, per_channel, dense_per_channel)


def _with_ranges(content: bytes, ranges: Ranges) -> bytes:
    """The float file, with each range where TensorFlow's calibration leaves it."""
    model = unpack(content)
    for index, (lowest, highest) in ranges.kept.items():
        kept = schema.QuantizationParametersT()
        kept.min, kept.max = [lowest], [highest]
        model.subgraphs[0].tensors[index].quantization = kept
    return pack(model)


def _to_int8(content: bytes, io: str, per_channel: bool, dense_per_channel: bool, kept_float: frozenset[str]) -> bytes:
    from tensorflow.lite.python.convert import mlir_quantize  # here: `quiet_tensorflow` must load TensorFlow first

    ends = tf.int8 if io == "int8" else tf.float32
    file = read_file(content)
    nameless = {file.tensors[op.outputs[0]].name for op in file.ops if op.name == _NAMELESS}
    return _said(
        "int8",
        lambda: mlir_quantize(
            content,
            disable_per_channel=not per_channel,
            disable_per_channel_for_dense_layers=not dense_per_channel,
            input_data_type=ends,
            output_data_type=ends,
            denylisted_nodes=sorted(kept_float | _divisions(file)),
            denylisted_ops=[_NAMELESS] if nameless & kept_float else [],
        ),
    )


def _divisions(file: File) -> set[str]:
    """The results of divisions, and their divisors, to which networks add a little so that none is 0.

    Integers would round that away, and stop the program at an input that no calibration sample may have been.
    """
    indices = set()
    for division in (op for op in file.ops if op.name == "DIV"):
        indices.add(division.outputs[0])
        divisor = division.inputs[1]
        while writer := file.writers.get(divisor):
            indices.add(divisor)
            if writer.name not in ("RESHAPE", "TILE"):  # these repeat what was added to before
                break
            divisor = writer.inputs[0]
    return {file.tensors[i].name for i in indices}


def _wide_comparisons(file: File, ranges: Ranges) -> frozenset[str]:
    """The results of comparisons of values so wide that a step may be 1 or more: kernels have no form for that."""
    found = set()
    for op in (op for op in file.ops if op.name in _COMPARISONS):
        widths = [high - low for low, high in (ranges.kept[i] for i in op.inputs if i in ranges.kept)]
        widths += [float(np.abs(x.data).max()) for x in file.operands(op) if x.data is not None and x.data.size]
        if max(widths, default=0.0) >= _WIDE:
            found.add(file.tensors[op.outputs[0]].name)
    return frozenset(found)


def _to_int16(model: FloatModel, io: str, per_channel: bool, dense_per_channel: bool) -> bytes:
    from tensorflow.lite.python.optimize.calibrator import Calibrator  # as above

    ends, activations, biases = (np.dtype(d).num for d in ("int16" if io == "int8" else "float32", "int16", "int64"))
    allow_float = False
    # Its public methods calibrate first; without that, it takes the ranges that the file has.
    quantizer = Calibrator(model.content)._calibrator
    return _said(
        "int16x8",
        lambda: quantizer.QuantizeModel(
            ends, ends, allow_float, activations, biases, not per_channel, not dense_per_channel
        ),
        lambda reason: _instead_of(model, reason),
    )


def _instead_of(model: FloatModel, reason: str) -> str:
    """The layers whose operator the quantizer of int16x8 names, and what to do."""
    named, file = re.search(r"for op: '(\w+)'", reason), read_file(model.content)
    results = [file.tensors[op.outputs[0]].name for op in file.ops if named and op.name == named[1]]
    layers = [*dict.fromkeys(layer_of_tensor(model, name) for name in results)]
    if not layers:
        return "; use quantize='int8'"
    several = len(layers) > 1
    return f" (layer{'s' * several} {listed(layers)}); use quantize='int8', or replace {'these' if several else 'it'}"


def _said(scheme: str, quantizer: Callable[[], bytes], remedy: Callable[[str], str] = lambda reason: "") -> bytes:
    """What a quantizer of TensorFlow gives; its complaints are raised, with a ``remedy`` for each."""
    with quiet_tensorflow(), stderr_kept() as written:
        try:
            return bytes(quantizer())
        except Exception as error:  # the quantizers raise several kinds
            reason = (str(error).strip() or written().strip() or type(error).__name__).splitlines()[0]
            said = f"{reason.rstrip('.')}{remedy(reason)}"
            raise ExportError(f"TensorFlow cannot quantize the network to {scheme}: {said}") from error
