"""The ATen graph of a module, as the TFLite lowering takes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves

from nbcompile.core.errors import ExportError
from nbcompile.core.example import Inputs, change_tensors
from nbcompile.core.words import first_line
from nbcompile.exporters.one_at_a_time import one_at_a_time
from nbcompile.exporters.program import UncapturedError, place, program_of
from nbcompile.exporters.to_tflite.lower.constant_places import with_constant_places
from nbcompile.exporters.to_tflite.lower.in_others import IN_OTHERS
from nbcompile.exporters.to_tflite.lower.ops.table import HANDLERS
from nbcompile.exporters.to_tflite.lower.same_network import differ_in_weights, weights_of
from nbcompile.exporters.to_tflite.once import once


@dataclass(frozen=True)
class Capture:
    """The functional ATen graph of a module.

    Attributes:
        program: the graph.
        constants: what its placeholders stand for, by name; not the user's inputs.
    """

    program: ExportedProgram
    constants: Mapping[str, Any]


@one_at_a_time
def captured(graph: nn.Module, inputs: Inputs) -> Capture:
    """The functional ATen graph of ``graph`` at batch 1: operators with a handler whole, all others decomposed.

    In one export, a network that was captured is captured once, whatever its weights.

    Args:
        graph: on the CPU, in eval mode.
        inputs: example, batch first; tensors whose first dimension is that of the first one share the batch.

    Raises:
        ExportError: if it cannot be captured, or it changes its own buffers.
    """
    graph = with_constant_places(graph)
    for other, of_other in _captures(inputs):
        constants = _constants(of_other, graph)
        if constants is not None and differ_in_weights(graph, other):
            return Capture(of_other, constants)
    program = _program(graph, inputs)
    _captures(inputs).append((graph, program))
    values = {**program.state_dict, **program.constants}
    return Capture(program, {name: values[target] for name, target in _targets(program).items()})


@once
def _captures(inputs: Inputs) -> list[tuple[nn.Module, ExportedProgram]]:
    """What was captured in this export."""
    return []


def _constants(program: ExportedProgram, graph: nn.Module) -> dict[str, Any] | None:
    """The constants of ``program`` in ``graph``; None where one of them is not to be found there."""
    weights, targets = weights_of(graph), _targets(program)
    if not weights.keys() >= {*targets.values()}:
        return None
    return {name: weights[target] for name, target in targets.items()}


def _program(graph: nn.Module, inputs: Inputs) -> ExportedProgram:
    table = torch.export.default_decompositions()
    for name, form in IN_OTHERS.items():
        table[_overload(name)] = form
    for name in HANDLERS:
        table.pop(_overload(name), None)  # type: ignore[no-untyped-call]
    try:
        program: ExportedProgram = program_of(graph, first_sample(inputs)).run_decompositions(table)
    except UncapturedError as error:
        raise ExportError(
            f"torch.export cannot capture {type(graph).__name__} with fixed sizes, which TFLite needs{error.place}: "
            f"{error.reason}; {error.remedy}"
        ) from error
    except Exception as error:  # decompositions raise many kinds
        raise ExportError(f"{type(graph).__name__} cannot be decomposed for TFLite: {first_line(error)}") from error
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.higher_order.with_effects):
        raise ExportError(
            f"{type(graph).__name__} calls aten.{aten_name(node.args[1])}{place(node)}, which does more than give a "
            "result: replace it, or export to .onnx"
        )
    _keep_outputs(program, type(graph).__name__)
    return program


def _keep_outputs(program: ExportedProgram, name: str) -> None:
    """Leave out what a run writes into inputs and buffers, where no output of a later run depends on it.

    Raises:
        ExportError: if one does: it reads a buffer that an earlier run wrote.
    """
    signature, graph = program.graph_signature, program.graph
    (end,) = graph.find_nodes(op="output")
    results = cast(Sequence[Any], end.args[0])
    kinds = [spec.kind for spec in signature.output_specs]
    end.args = (tuple(x for x, kind in zip(results, kinds, strict=True) if kind is OutputKind.USER_OUTPUT),)
    for node in reversed(list(graph.nodes)):  # checks of shapes and values, and what only these read
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
    written = [spec.target for spec in signature.output_specs if spec.kind is OutputKind.BUFFER_MUTATION]
    names = {spec.arg.name: spec.target for spec in signature.input_specs if spec.target in written}
    for node in graph.find_nodes(op="placeholder"):
        if node.name in names and node.users:
            where = place(next(iter(node.users)))
            raise ExportError(
                f"{name} keeps '{names[node.name]}' from one run to the next, and reads it{where}: "
                "a .tflite file keeps nothing; take that value as an input, and return it as an output"
            )


def first_sample(inputs: Inputs) -> Inputs:
    """``inputs`` at batch 1."""
    batch = tree_leaves(inputs)[0].shape[:1]
    return change_tensors(lambda x: x[:1] if x.shape[:1] == batch else x, inputs)


def _targets(program: ExportedProgram) -> dict[str, str]:
    """The names of the graph's placeholders that are not the user's inputs, and of what they stand for."""
    specs = program.graph_signature.input_specs
    return {spec.arg.name: str(spec.target) for spec in specs if spec.kind is not InputKind.USER_INPUT}


def aten_name(target: Any) -> str:
    """The name of an ATen operator in `HANDLERS`: ``conv2d``, ``add.Tensor``."""
    return str(target).removeprefix("aten.").removesuffix(".default")


def _overload(name: str) -> torch._ops.OpOverload:
    """The ATen operator of a name in `HANDLERS`."""
    packet, _, overload = name.partition(".")
    operator: torch._ops.OpOverload = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return operator
