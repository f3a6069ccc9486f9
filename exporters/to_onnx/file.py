"""Read an ONNX file, and know the size of every value in it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from nbcompile.core.errors import CheckpointError
from nbcompile.exporters.to_onnx.functions import require_few_nodes

InputSizes = dict[str, tuple[int, ...]]

RECURRENT = ("LSTM", "GRU", "RNN")
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", *RECURRENT)
"""Operators that multiply and accumulate."""

REFUSED = (
    *("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulNBits", "QGemm"),
    *("FusedConv", "FusedGemm", "FusedMatMul", "Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention"),
    *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "NhwcConv", "DeformConv"),
)
"""What quantizers and ONNX Runtime's own optimiser put in their place, and what else multiplies."""


def read_model(path: Path) -> ModelProto:
    """The model, checked, functions inlined; without external data: shapes are in the file itself.

    Raises:
        CheckpointError: if the file is missing, is no ONNX file, is not complete, or holds layers in ``REFUSED``, in
            branches or in loops.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    with damage_said(path):
        model = _parsed(data, path)
        require_few_nodes(model, len(data), path)
        onnx.checker.check_model(path)  # by path, so that external data is looked for beside the file
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    for node in model.graph.node:
        if node.op_type in REFUSED:
            raise CheckpointError(
                f"{path}: node '{node.name}' is a quantized or fused layer ({node.op_type}); "
                f"only {', '.join(LAYERS)} can be compared"
            )
        if any(inner.op_type in (*LAYERS, *REFUSED) for inner in _inside(node)):
            raise CheckpointError(f"{path}: node '{node.name}' ({node.op_type}) has layers inside a branch or loop")
    return model


def _inside(node: NodeProto) -> Iterator[NodeProto]:
    """The nodes in the branches of ``node``, and in theirs."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield inner
                yield from _inside(inner)


def _parsed(data: bytes, path: Path) -> ModelProto:
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise CheckpointError(f"cannot read {path}: it is no ONNX file, or not a complete one") from error
    if not model.graph.node or not model.opset_import:
        raise CheckpointError(f"cannot read {path}: it holds no ONNX graph")
    return model


@contextmanager
def damage_said(path: str | PathLike[str]) -> Iterator[None]:
    """What ONNX and protobuf raise for a graph that is damaged, and what nobody foresaw in it, as one sentence.

    Raises:
        CheckpointError: in its place.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # they raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"cannot read {path}: it is no valid ONNX graph ({reason})") from error


def sizes_per_batch(model: ModelProto, path: str | PathLike[str]) -> tuple[int, InputSizes]:
    """The batch, which is 1 if it is symbolic, and the sizes of all values that are known at it.

    Inferred by ONNX from inputs and weights; where it cannot know (behind a Range, say), as the file records them.

    Args:
        model: its symbolic batch is made 1.
        path: named in the error.

    Raises:
        CheckpointError: if the graph contradicts itself, or has sizes below 0.
    """
    batch, recorded = _at_batch_one(model)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    sizes = recorded | _sizes(_infer(model, path)) | weights
    if wrong := next((name for name, size in sizes.items() if min(size, default=0) < 0), None):
        raise CheckpointError(f"{path}: '{wrong}' has the sizes {sizes[wrong]}, and no size is below 0: it is damaged")
    return batch, sizes


def onnx_input_sizes(path: Path) -> tuple[tuple[int, ...], ...]:
    """Shapes of the inputs, at batch size 1 where the batch is symbolic.

    Raises:
        CheckpointError: if the file cannot be read, or leaves more than the batch open.
    """
    with damage_said(path):
        model = read_model(path)
        constants = {tensor.name for tensor in model.graph.initializer}
        _, sizes = sizes_per_batch(model, path)
        inputs = [value.name for value in model.graph.input if value.name not in constants]
        if unknown := next((name for name in inputs if name not in sizes), None):
            raise CheckpointError(
                f"{path}: the size of input '{unknown}' is not fixed; export the model with fixed sizes"
            )
        return tuple(sizes[name] for name in inputs)


def onnx_quantized(path: Path) -> bool:
    """Whether a file rounds values while it runs (QDQ).

    Raises:
        CheckpointError: if the file cannot be read.
    """
    return any(node.op_type == "QuantizeLinear" for node in read_model(path).graph.node)


def onnx_batch(path: Path) -> int | None:
    """The one batch size that a file takes; None where that is symbolic.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    with damage_said(path):
        model = read_model(path)
        constants = {tensor.name for tensor in model.graph.initializer}
        for value in model.graph.input:
            dims = value.type.tensor_type.shape.dim
            if value.name not in constants and dims:
                return int(dims[0].dim_value) if dims[0].HasField("dim_value") else None
        return None


def _at_batch_one(model: ModelProto) -> tuple[int, InputSizes]:
    """Make a symbolic batch 1, in place; the batch that is left, and the sizes that the file records at it."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in constants and v.type.tensor_type.shape.dim]
    firsts = [value.type.tensor_type.shape.dim[0] for value in inputs]
    symbols = {first.dim_param for first in firsts if first.dim_param}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = 1
    for first in firsts:
        if not first.HasField("dim_value"):  # symbolic without a name
            first.dim_value = 1
    return max(1, firsts[0].dim_value) if firsts else 1, _sizes(model)


def _sizes(model: ModelProto) -> InputSizes:
    """Sizes of the values whose every dimension is known."""
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }


def _infer(model: ModelProto, path: str | PathLike[str]) -> ModelProto:
    """A copy of ``model`` with the sizes that ONNX infers from its inputs and weights, and no other."""
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        for _ in range(_ROUNDS):
            found = shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
            if not _store_numbers(bare, _sizes(found)):
                break
        return found
    except shape_inference.InferenceError as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(f"{path}: its shapes do not fit together ({reason})") from error


_OF_NUMBERS = (
    *("Add", "Cast", "Concat", "Div", "Gather", "Identity", "Max", "Min", "Mod", "Mul", "Neg", "ReduceProd"),
    *("Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze"),
)
"""Operators that compute sizes from sizes, and make no more numbers than they read."""

_FEW = 64
_ROUNDS = 20
"""Of what is computed from the sizes of what was computed from sizes: a file may be made to take long."""


def _store_numbers(model: ModelProto, sizes: InputSizes) -> bool:
    """Store what a graph computes from sizes that are known; what Tile or Pad give, ONNX infers from stored numbers.

    Args:
        model: changed in place.
        sizes: of its values.

    Returns:
        Whether there was something to store.
    """
    graph = model.graph
    stored = [x for x in graph.initializer if math.prod(x.dims) <= _FEW and x.data_type == TensorProto.INT64]
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in stored}
    outputs = {value.name for value in graph.output}
    done = []
    for node in graph.node:
        if outputs & {*node.output}:
            continue
        if node.op_type == "Shape" and node.input[0] in sizes:
            options = {attribute.name: attribute.i for attribute in node.attribute}
            found = np.array(sizes[node.input[0]][options.get("start") : options.get("end")], np.int64)
        elif node.op_type in _OF_NUMBERS and node.input and all(name in known for name in node.input if name):
            alone = helper.make_graph([node], "it", [], [helper.make_empty_tensor_value_info(node.output[0])])
            try:
                run: Any = ReferenceEvaluator(helper.make_model(alone, opset_imports=model.opset_import)).run
                found = np.asarray(run(None, {name: known[name] for name in node.input if name})[0])
            except Exception:  # what it does not know stays as ONNX infers it
                continue
        else:
            continue
        if found.dtype == np.int64 and found.size <= _FEW:
            known[node.output[0]] = found
            done.append(node)
    for node in done:
        graph.initializer.append(numpy_helper.from_array(known[node.output[0]], node.output[0]))
        graph.node.remove(node)
    return bool(done)
