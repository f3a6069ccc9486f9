"""Names of tensors: while lowering, every node of the graph has a number; in the file, its layer's name.

TensorFlow fuses and folds, and says of each tensor that it keeps what went into it
(``n7/Relu6;n6/BiasAdd;n6/Conv2D``). Numbers survive that whatever characters a layer's name has.
"""

import copy
import operator
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram

from nbcompile.core.tracing.compiled_piece import CompiledPiece
from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp, pack, read_file, unpack
from nbcompile.exporters.to_tflite.lower.capture import aten_name

_NUMBER = re.compile(r"(?:^|[;/])n(\d+)(?=[/:;_]|$)")
_LAYERS = {
    "CONV_2D": {1: "weight", 2: "bias"},
    "DEPTHWISE_CONV_2D": {1: "weight", 2: "bias"},
    "FULLY_CONNECTED": {1: "weight", 2: "bias"},
    "TRANSPOSE_CONV": {1: "weight", 3: "bias"},
}
"""Operators with a layer's parameters, and which of their inputs those are."""


def scope(number: int) -> str:
    """The name of node ``number`` in TensorFlow's graph."""
    return f"n{number}"


def owners(program: ExportedProgram, model: nn.Module) -> dict[fx.Node, str]:
    """The qualified name of the module that each node is computed in; of several, the innermost that is known.

    A part that was compiled by itself is run as one node: there, layers are known by their weights.

    Args:
        program: the captured graph.
        model: what was captured.
    """
    pieces = [name for name, module in model.named_modules() if issubclass(type(module), CompiledPiece)]

    def outside(name: str) -> str:
        """A name in ``model`` as the user has it."""
        for piece in reversed(pieces):  # the innermost first
            name = f"{name}.".replace(f"{piece}.compiled.", f"{piece}.", 1).removesuffix(".")
        return name

    specs = program.graph_signature.input_specs
    holders = {spec.arg.name: outside(str(spec.target).rpartition(".")[0]) for spec in specs}
    owned = {}
    for node in program.graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        owner = outside(str(stack[-1][0])) if stack else ""
        inner = [holders.get(source.name, "") for source in node.all_input_nodes]
        owned[node] = max((name for name in inner if not owner or name.startswith(f"{owner}.")), key=len, default=owner)
    return owned


def labels(owners: Mapping[fx.Node, str], nodes: Sequence[fx.Node]) -> list[str]:
    """A name for every node.

    That of the layer whose result it is (``features.0.0``); else the module that it is computed in, and the operator
    (``features.3/add``).
    """
    named = [owners[node] for node in nodes]
    outer = {".".join(parts[:i]) for parts in (name.split(".") for name in named) for i in range(len(parts))}
    labelled = []
    for i, (node, owner) in enumerate(zip(nodes, named, strict=True)):
        operation = _operation(node)
        result = owner not in outer and named[i + 1 : i + 2] != [owner]
        labelled.append(owner if result else f"{owner}/{operation}" if owner else operation)
    return _unique(labelled)


def _operation(node: fx.Node) -> str:
    """What PyTorch calls it: ``add``; of one of several results ``topk/values``."""
    if node.target is not operator.getitem:
        return aten_name(node.target).partition(".")[0]
    source, number = cast(tuple[fx.Node, int], node.args)
    results = source.target._schema.returns if isinstance(source.target, OpOverload) else ()
    return f"{_operation(source)}/{results[number].name if len(results) > number else ''}".removesuffix("/")


def rename_tensors(
    content: bytes, inputs: Sequence[str], nodes: Sequence[str], outputs: Sequence[int | None]
) -> tuple[bytes, Mapping[str, str]]:
    """A converted file with the layers' names on its tensors.

    A layer with parameters gives its name to what it computes, whatever activation is part of that
    (``features.0.0``), and to its constants (``features.0.0.weight``). Each layer keeps its own, whatever their
    values: the converter lets layers share what is equal.

    Args:
        content: the file, as the converter names its tensors.
        inputs: names of the inputs.
        nodes: the name of each node, by number (`labels`).
        outputs: the number of the node that computes each output; None for an output that no node computes.

    Returns:
        The file, and for each tensor that a node's result is in, the name of that node.
    """
    file = read_file(content)
    numbers = [{int(n) for n in _NUMBER.findall(tensor.name)} for tensor in file.tensors]
    for index, number in zip(file.outputs, outputs, strict=True):
        numbers[index] |= set() if number is None else {number}
    names: dict[int, str] = dict(zip(file.inputs, inputs, strict=True))
    results: dict[int, str] = {}
    shared: list[tuple[int, int]] = []
    last = {number: op.index for op in file.ops for number in numbers[op.outputs[0]]}
    for op in file.ops:
        number = max(numbers[op.outputs[0]], default=-1)
        parameters = _LAYERS.get(op.name, {})
        layer = nodes[_layer_of(op, file, numbers)] if parameters else nodes[number] if number >= 0 else "constant"
        whole = last.get(number) == op.index
        for i, index in enumerate(op.outputs):
            name = layer if whole or parameters else f"{layer}/{op.name.lower()}"
            names.setdefault(index, name if i == 0 else f"{name}:{i}")
            if whole and i == 0:
                results[index] = nodes[number]
        for i, index in enumerate(op.inputs):
            if index < 0 or file.tensors[index].data is None:
                continue
            if i in parameters and index in names:
                shared.append((op.index, i))
                index = len(file.tensors) + len(shared) - 1
            names.setdefault(index, f"{layer}.{parameters[i]}" if i in parameters else f"{layer}/constant")
    for index, known in zip(file.outputs, outputs, strict=True):  # one that no operator writes: a constant
        names.setdefault(index, "output" if known is None else nodes[known])
    unique = dict(zip(names, _unique(names.values()), strict=True))
    model = unpack(content)
    for op_index, i in shared:
        _own(model, op_index, i)
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        tensor.name = unique.get(index, f"unused_{index}").encode()
    return pack(model), {unique[index]: name for index, name in results.items()}


def _own(model: Any, op_index: int, i: int) -> None:
    """Give input ``i`` of an operator a tensor of its own, with bytes of its own, behind all others."""
    graph = model.subgraphs[0]
    op = graph.operators[op_index]
    tensor = copy.copy(graph.tensors[op.inputs[i]])
    model.buffers.append(copy.copy(model.buffers[tensor.buffer]))
    tensor.buffer = len(model.buffers) - 1
    op.inputs = [*op.inputs[:i], len(graph.tensors), *op.inputs[i + 1 :]]
    graph.tensors.append(tensor)


def _layer_of(op: FileOp, file: File, numbers: Sequence[set[int]]) -> int:
    """The node that brought the weights of ``op``; weights that two layers share carry the first one's number."""
    of_weights = numbers[op.inputs[1]]
    return min(of_weights & numbers[op.outputs[0]] or of_weights or numbers[op.outputs[0]])


def _unique(names: Iterable[str]) -> list[str]:
    """``names``, those that come again numbered from the second on."""
    taken: Counter[str] = Counter()
    unique = []
    for name in names:
        taken[name] += 1
        unique.append(name if taken[name] == 1 else f"{name}_{taken[name]}")
    return unique
