"""The layers of an ONNX file, whatever tool wrote it: names, shapes, MACs and parameters.

Everything is taken from the graph itself: weights from the initializers, sizes from ONNX's own shape inference. What
the file says *about* itself (its metadata) is not looked at.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

from nbcompile.core.errors import CheckpointError
from nbcompile.exporters.base import FileLayer
from nbcompile.exporters.to_onnx.file import LAYERS, RECURRENT, InputSizes, damage_said, read_model, sizes_per_batch

QUANTIZED = "_quantized"
"""What ONNX Runtime's quantizer puts behind a weight's name."""

_VIEWS = ("Identity", "Transpose", "Cast", "DequantizeLinear")  # what may stand between a weight and its layer


@dataclass(frozen=True)
class OnnxLayer(FileLayer):
    """One convolution, linear layer or matrix product; several nodes that read the same weight are one layer.

    Its name is the weight's without ``.weight``; where there is no weight, the node's. Its kind is one of ``LAYERS``.

    Attributes:
        weight: shape as PyTorch has it, ``(C_out, C_in // groups, *kernel)`` or ``(out, in)``; ``()`` without a weight.
        calls: how many nodes read it.
    """

    weight: tuple[int, ...] = ()
    calls: int = 1


def onnx_layers(path: str | PathLike[str]) -> tuple[OnnxLayer, ...]:
    """The layers of an ONNX file in the order of its graph; totals are the sums over them.

    MACs are per sample, at the file's own input shape: a symbolic first dimension counts as 1. Padding counts, as
    everywhere in nbcompile.

    Raises:
        CheckpointError: if the file is missing, is no ONNX file, is not complete, or its sizes cannot be inferred.
    """
    with damage_said(path):
        model = read_model(Path(path))
        return _layers(model, path)


def _layers(model: ModelProto, path: str | PathLike[str]) -> tuple[OnnxLayer, ...]:
    batch, sizes = sizes_per_batch(model, path)
    layers: dict[str, OnnxLayer] = {}
    for product in _products(model):
        macs = _macs(product, sizes, path) // batch
        if not macs:  # an Einsum that sums over nothing
            continue
        key = product.weight_name or f"node {product.name}"
        if key in layers:
            layers[key] = replace(layers[key], macs=layers[key].macs + macs, calls=layers[key].calls + 1)
        else:
            params = math.prod(product.weight) + product.bias if product.weight else 0
            layers[key] = OnnxLayer(product.name, product.node.op_type, macs, params, product.torch_weight)
    return tuple(layers.values())


def layer_names(model: ModelProto) -> list[str]:
    """Names of the layers that have weights, in the order of the graph, each once."""
    return list(dict.fromkeys(product.name for product in _products(model) if product.weight))


@dataclass(frozen=True)
class _Product:
    """A node that multiplies; ``weight`` as the node reads it, ``bias`` and what else it has in elements."""

    node: NodeProto
    name: str
    weight_name: str
    weight: tuple[int, ...]
    bias: int

    @property
    def torch_weight(self) -> tuple[int, ...]:
        if self.node.op_type == "MatMul" or (self.node.op_type == "Gemm" and not _attribute(self.node, "transB", 0)):
            return self.weight[::-1]
        return self.weight


def _products(model: ModelProto) -> Iterator[_Product]:
    """Nodes of ``LAYERS`` with their weights and biases, in the order of the graph."""
    graph = model.graph
    constants = _constants(model)
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in graph.node:
        if node.op_type in LAYERS:
            source = constants.get(node.input[1]) if len(node.input) > 1 else None
            name, shape = source or ("", ())
            yield _Product(
                node=node,
                name=name.removesuffix(QUANTIZED).removesuffix(".weight") if name else node.name or node.output[0],
                weight_name=name,
                weight=shape,
                bias=_others(node, readers, constants),
            )


def _constants(model: ModelProto) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By what a node may read: the tensor that it shows, and the shape as seen there; nodes are in order."""
    shown = {tensor.name: (tensor.name, tuple(tensor.dims)) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and isinstance(value := _attribute(node, "value", None), TensorProto):
            shown[node.output[0]] = node.output[0], tuple(value.dims)
        elif node.op_type in _VIEWS and node.input[0] in shown:
            name, shape = shown[node.input[0]]
            order = _attribute(node, "perm", range(len(shape))[::-1]) if node.op_type == "Transpose" else ()
            shown[node.output[0]] = name, tuple(shape[axis] for axis in order) if order else shape
    return shown


def _others(
    node: NodeProto, readers: dict[str, list[NodeProto]], constants: dict[str, tuple[str, tuple[int, ...]]]
) -> int:
    """Elements of a layer's parameters beside its weight."""
    if node.op_type in RECURRENT:  # recurrent weights and biases
        return sum(math.prod(constants[name][1]) for name in node.input[2:4] if name in constants)
    name = _bias(node, readers)
    shape = constants[name][1] if name in constants else ()
    return shape[0] if len(shape) == 1 else 0  # not a position embedding


def _bias(node: NodeProto, readers: dict[str, list[NodeProto]]) -> str | None:
    """Name of the bias: the third input, or what the only reader of a MatMul adds to it."""
    if node.op_type not in ("MatMul", "Einsum"):
        return node.input[2] if len(node.input) > 2 else None
    after = readers.get(node.output[0], [])
    if len(after) != 1 or after[0].op_type != "Add":
        return None
    return next((name for name in after[0].input if name != node.output[0]), None)


def _macs(product: _Product, sizes: InputSizes, path: str | PathLike[str]) -> int:
    """Multiply-accumulates of one node over the whole batch.

    Every position that a kernel is laid on (output positions; input positions, if transposed) meets every weight.
    """
    node = product.node

    def size(name: str) -> tuple[int, ...]:
        if name not in sizes:
            raise CheckpointError(
                f"{path}: the size of '{name}' at layer '{product.name}' cannot be inferred; "
                f"export the model with fixed sizes (all but the batch)"
            )
        return sizes[name]

    if node.op_type in ("Conv", "ConvTranspose"):
        over = size(node.input[0] if node.op_type == "ConvTranspose" else node.output[0])
        return over[0] * math.prod(over[2:]) * math.prod(product.weight or size(node.input[1]))
    if node.op_type == "Einsum":
        letters = _letters(product, [size(name) for name in node.input], path)
        return math.prod(letters.values()) if letters.keys() - _equation(node)[1] else 0
    left = size(node.input[0])
    if node.op_type in RECURRENT:  # at every step of every sequence all elements of both weights
        return math.prod(left[:2]) * (math.prod(size(node.input[1])) + math.prod(size(node.input[2])))
    inner = left[0] if node.op_type == "Gemm" and _attribute(node, "transA", 0) else left[-1]
    return math.prod(size(node.output[0])) * inner


def _letters(product: _Product, sizes: list[tuple[int, ...]], path: str | PathLike[str]) -> dict[str, int]:
    """Size of every index of an Einsum of two operands; together they count its multiply-accumulates."""
    operands, result = _equation(product.node)
    if len(operands) != 2 or "." in "".join((*operands, *result)):
        equation = f"{','.join(operands)}->{''.join(result)}"
        raise CheckpointError(f"{path}: the MACs of node '{product.name}' (Einsum '{equation}') cannot be counted")
    return {
        letter: n for names, size in zip(operands, sizes, strict=True) for letter, n in zip(names, size, strict=True)
    }


def _equation(node: NodeProto) -> tuple[list[str], list[str]]:
    """The indices of each operand of an Einsum, and those of its result."""
    equation = _attribute(node, "equation", b"").decode().replace(" ", "")
    operands, arrow, result = equation.partition("->")
    if not arrow:  # those that stand once, in the order of the alphabet
        result = "".join(sorted(x for x in set(operands) - {","} if operands.count(x) == 1))
    return operands.split(","), list(result)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default
